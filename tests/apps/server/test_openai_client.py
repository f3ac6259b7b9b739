"""The real `openai` client against a running server: models, audio on routes of ours, errors."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import soundfile
from tests.apps.server.conftest import Live


@pytest.mark.slow
def test_the_openai_client_lists_models_asks_for_audio_and_knows_the_errors(
    serve: Callable[..., Live], prompt_file: Path
) -> None:
    openai = pytest.importorskip("openai", reason="pip install openai")
    live = serve(key="sesame", seconds=2.0)
    url = f"http://127.0.0.1:{live.port}/v1"
    client = openai.OpenAI(base_url=url, api_key="sesame", max_retries=0)
    assert [model.id for model in client.models.list()] == ["speech"]
    assert client.models.retrieve("speech").object == "model"

    answer = client.post(
        "/audio/generations", cast_to=httpx.Response, body={"seconds": 0.5, "model": "speech"}
    )
    wave, rate = soundfile.read(io.BytesIO(answer.content))
    assert len(wave) / rate == pytest.approx(0.5, abs=0.05)  # whole frames
    answer = client.post(
        "/audio/continuations",
        cast_to=httpx.Response,
        body={"seconds": 0.5, "prompt_audio": "none"},
        files={"audio": ("prompt.wav", prompt_file.read_bytes())},
        options={"headers": {"Content-Type": "multipart/form-data"}},
    )
    wave, rate = soundfile.read(io.BytesIO(answer.content))
    assert len(wave) / rate == pytest.approx(0.5, abs=0.05)  # whole frames

    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("whale")
    with pytest.raises(openai.UnprocessableEntityError, match="seconds"):
        client.post("/audio/generations", cast_to=httpx.Response, body={"seconds": 99})
    with pytest.raises(openai.NotFoundError):
        client.audio.speech.create(model="speech", voice="alloy", input="text")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
