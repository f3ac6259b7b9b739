"""Leave checks that repeat what another fast test finds to the slow set."""

from __future__ import annotations

import pytest

#: Run for all components in one process by test_listing_and_validating_import_no_torch.
OF_ALL = ("options_import_no_torch",)
#: By code that Lyra shares with SoundStream, whose tests run them.
OF_SOUNDSTREAM = ("streams_do_not_wait_for_the_end", "streams_share_nothing", "handles_long_audio")
REPEATED = {"test_lyra": OF_ALL + OF_SOUNDSTREAM}


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        check = getattr(item, "callspec", None) and item.callspec.params.get("check")  # type: ignore[attr-defined]
        in_plugins = item.nodeid.startswith("tests/plugins/")
        if in_plugins and getattr(check, "name", "") in REPEATED.get(item.path.stem, OF_ALL):
            item.add_marker(pytest.mark.slow)
