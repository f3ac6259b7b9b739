"""Leave checks that repeat what another fast test finds to the slow set."""

from __future__ import annotations

import pytest

#: Run for all components in one process by test_listing_and_validating_import_no_torch.
OF_ALL = ("options_import_no_torch",)
#: Lyra's layers are its own; the rest of its code is SoundStream's, whose tests run every check.
OF_LAYERS = (
    "spec_is_that_of_the_options",
    "emits_what_its_spec_declares",
    "batch_equals_rows",
    "ignores_what_lies_beyond",
    "decoded_batch_equals_rows",
    "decoded_audio_ends_in_zeros",
    "decodes_any_number_of_levels",
    "streamed_equals_offline",
    "streamed_encoding_equals_offline",
    "works_in_double_precision",
    "state_round_trip",
)


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        check = item.callspec.params.get("check") if hasattr(item, "callspec") else None
        if check is None or not item.nodeid.startswith("tests/plugins/"):
            continue
        if check.name in OF_ALL or (item.path.stem == "test_lyra" and check.name not in OF_LAYERS):
            item.add_marker(pytest.mark.slow)
