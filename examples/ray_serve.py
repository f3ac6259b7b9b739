"""Serve Segue with Ray Serve: replicas of the server, on one machine or on the nodes of a cluster.

In the root of the checkout:

    pip install '.[serve]' 'ray[serve]'
    serve run examples.ray_serve:application models=speech,piano replicas=2

Ray sends each request to the replica with fewer of them inside; each replica batches and streams
as `segue serve` does. Every machine needs the same packages and, for a directory of your own, the
same path.
"""

import os
from typing import Any

from pydantic import BaseModel
from ray import serve


class Settings(BaseModel):
    """The settings behind ``serve run``.

    Attributes:
        models: shipped weights or pipeline directories, separated by commas.
        replicas: copies of the server, each with all models.
        cpus: cores that Ray keeps for a replica.
        gpus: GPUs, or a part of one, that Ray keeps for a replica; 0 computes on the CPU.
    """

    models: str = "speech"
    replicas: int = 2
    cpus: float = 1.0
    gpus: float = 0.0


# No annotations as text in this file: `serve run` looks for the class itself.
def application(settings: Settings) -> serve.Application:
    """Return what ``serve run`` deploys. SEGUE_API_KEY is read where this is called."""
    from segue.apps.server.limits import Limits

    key, limits = os.environ.get("SEGUE_API_KEY"), Limits()
    names, device = settings.models.split(","), "cuda" if settings.gpus else "cpu"

    def server() -> Any:  # called in each replica, which loads its own models
        from segue.apps.server.app import create_app
        from segue.apps.server.models import load_models

        return create_app(load_models(names, device=device), limits, key)

    replica = serve.deployment(
        serve.ingress(server)(),
        name="segue",
        num_replicas=settings.replicas,
        # As many as a replica's own gate lets in: they wait inside it, so that they form batches.
        max_ongoing_requests=limits.requests,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
    )
    return replica.bind()
