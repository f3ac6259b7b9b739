"""The paper's findings at a small scale: tables made from a trained pipeline and held-out data."""
