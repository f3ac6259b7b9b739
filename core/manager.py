"""Forward the former place of the plugin host to ``segue.core.plugins``, for one version."""

import warnings

from segue.core.plugins import PluginHost, PluginStatus, default_host, reset_default_host

__all__ = ["PluginHost", "PluginStatus", "default_host", "reset_default_host"]

warnings.warn("import segue.core.plugins in place of segue.core.manager", DeprecationWarning, 2)
