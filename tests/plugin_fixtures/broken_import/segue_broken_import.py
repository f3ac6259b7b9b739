"""A plugin that needs a module which is not installed."""

import a_module_that_nobody_installed  # type: ignore[import-not-found]  # noqa: F401
