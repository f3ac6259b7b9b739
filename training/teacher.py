"""Find the model whose guided draws a stage learns to draw by itself."""

from __future__ import annotations

from pathlib import Path

from segue.core.checkpoint import load_component
from segue.core.config import TrainingConfig
from segue.core.errors import GenerationError, TrainingError
from segue.core.interfaces import Component, StageLM
from segue.core.options import Sampling
from segue.core.plugins import PluginHost


def teacher_of(
    component: Component, config: TrainingConfig, place: str, host: PluginHost
) -> StageLM | None:
    """Return the model that ``config.guided`` asks to learn from, on the component's device.

    Raises:
        TrainingError: if the component cannot learn from guidance, or not from that model.
    """
    if (guided := config.guided) is None:
        return None
    if not isinstance(component, StageLM) or type(component).guided_loss is StageLM.guided_loss:
        problem = f"{type(component).__name__} cannot learn from guidance"
        raise TrainingError(f"{place}.guided", problem, "leave it out")
    if config.start_from is None:
        fix = f"name the model to learn from: --set {place}.start_from=DIR"
        raise TrainingError(f"{place}.guided", "is set, but start_from is not", fix)
    teacher, stage = load_component(Path(config.start_from), host, place), component.stage
    if not isinstance(teacher, type(component)) or (
        (teacher.stage.target, teacher.stage.given) != (stage.target, stage.given)
    ):
        problem = f"is {config.start_from}, which does not predict the same from the same"
        fix = "name a checkpoint of this stage, or leave guided out"
        raise TrainingError(f"{place}.start_from", problem, fix)
    asked = Sampling(guidance=guided.guidance, prompt_guidance=guided.prompt_guidance)
    try:
        teacher.check_sampling(asked)
    except GenerationError as error:
        name = error.place.rpartition(".")[2]
        raise TrainingError(f"{place}.guided.{name}", error.problem, error.fix) from error
    return teacher.to(component.device).eval().requires_grad_(False)
