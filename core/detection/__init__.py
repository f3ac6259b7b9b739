"""Tell recorded audio from generated audio: examples, training, evaluation, verdicts."""
