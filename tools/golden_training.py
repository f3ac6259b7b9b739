"""Train every part that can be trained, at tiny sizes, for `golden.py`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from golden_describe import (
    RATE,
    ROOT,
    Json,
    load,
    losses,
    melody,
    plain,
    recordings,
    result,
    segue,
    stored,
    streamed,
)

SAVED = ROOT / "tests" / "golden" / "saved_0.1"

T = {
    "steps": 20, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 5, "validate_every": 1,
    "validation_batches": 1, "best": 0, "adversary_from": 10, "crop_seconds": 0.5, "seed": 3,
}  # fmt: skip
SMALL = {"width": 16, "depth": 1, "heads": 2}
SPECTRAL = {
    "use": "spectral_codec.v1", "training": T,
    "options": {"width": 16, "encoder_depth": 1, "decoder_depth": 1, "num_levels": 3,
                "codebook_size": 32, "codebook_dim": 8},
}  # fmt: skip
SOUNDSTREAM = {
    "use": "soundstream.v1", "training": T,
    "options": {"channels": 2, "strides": [4, 8, 10], "latent_dim": 8, "num_levels": 3,
                "codebook_size": 32, "kmeans_frames": 64,
                "adversary": {"wave_scales": [1, 2], "wave_channels": 2, "stft_channels": 2,
                              "stft_windows": [256], "stretch": 4000}},
}  # fmt: skip
SSL = {"num_clusters": 16, "width": 16, "depth": 2, "heads": 2, "layer": 1, "target_codes": 12}
LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "vocab_size": 50,
         "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip


def stage(name: str, predicts: str, given: Sequence[str], use: str, **more: Any) -> Json:
    """Describe a stage; what is none of ``crop_seconds`` and the like is an option of its model."""
    own = ("crop_seconds", "overlap", "sampling", "decoding")
    training = T | more.pop("training", {})
    options = {key: value for key, value in more.items() if key not in own}
    if not use.startswith("hf"):
        options = SMALL | options
    lm = {"use": use, "options": options, "training": training}
    described = {"name": name, "predicts": predicts, "given": list(given), "lm": lm}
    return {"crop_seconds": 1} | described | {k: v for k, v in more.items() if k in own}


def trained(name: str, config: Json, part: str = "all") -> Json:
    """Train a pipeline; return its losses, its tokens, and what it makes of a prompt."""
    run = Path("runs", name)
    common = (*named(name, config), "--data", "data", "-o", run, "--json")
    if part.startswith("stages"):
        segue("tokenize", *common)
    segue("train", part, *common)
    found = {"losses": losses(run)}
    if (run / "tokens" / "store.json").exists():
        found["tokens"] = stored(run / "tokens")
    if part == "all":
        pipeline, wave = load(run / "pipeline"), melody(1.3, 99)
        found["continue"] = result(pipeline.continue_(wave, RATE, seconds=2.2, seed=5))
        if pipeline.codec.can_stream:
            found["stream"] = streamed(pipeline.stream(wave, RATE, seconds=2.2, seed=6))
    return found


def named(name: str, config: Json) -> tuple[str, ...]:
    """Write a config and return the options that name it."""
    Path(f"{name}.yaml").write_text(json.dumps({"name": name} | config))
    return ("--config", f"{name}.yaml")


def newest(folder: str) -> str:
    return str(max(Path(folder).glob("step-*")).resolve())


def tiny_model(kind: str) -> str:
    """Save a small random model of transformers and return where."""
    import transformers

    wave = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    values: dict[str, Json] = {
        "Hubert": {**wave, "intermediate_size": 24, "conv_dim": (8,) * 7,
                   "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
        "Encodec": {"sampling_rate": 800, "hidden_size": 16, "num_filters": 4, "codebook_size": 16,
                    "upsampling_ratios": [5, 4, 2], "target_bandwidths": [0.08, 0.4],
                    "num_lstm_layers": 1},
        "Dac": {"sampling_rate": 800, "encoder_hidden_size": 4, "decoder_hidden_size": 16,
                "n_codebooks": 4, "downsampling_ratios": [2, 5, 4], "codebook_size": 16,
                "codebook_dim": 4},
        "Mimi": {"sampling_rate": 1000, "num_filters": 4, "upsampling_ratios": [5, 4, 2],
                 "codebook_size": 16, "codebook_dim": 8, "num_quantizers": 5, **wave,
                 "vector_quantization_hidden_dimension": 8, "num_semantic_quantizers": 2,
                 "upsample_groups": 16, "intermediate_size": 16, "num_key_value_heads": 2,
                 "sliding_window": 6},
        "Llama": {key: value for key, value in LLAMA.items() if key != "model_type"},
    }  # fmt: skip
    torch.manual_seed(0)
    suffix = "ForCausalLM" if kind == "Llama" else "Model"
    config = getattr(transformers, f"{kind}Config")(**values[kind])
    model = getattr(transformers, f"{kind}{suffix}")(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("embed", "embed_sum")):  # codebooks are zero in a new model
            buffer.normal_()
    model.save_pretrained(f"models/{kind}")
    if kind == "Hubert":
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(f"models/{kind}")
    return str(Path("models", kind).resolve())


def tokenizers() -> Json:
    """Train every tokenizer by gradient, by fitting or both, and tokenize with those that are not
    trained."""
    recordings()
    found: dict[str, Json] = {}
    semantic = stage("semantic", "semantic", (), "flat_transformer.v1")
    acoustic = stage("acoustic", "acoustic", ("semantic",), "delay_transformer.v1")
    kinds: dict[str, tuple[str, Json]] = {
        "hubert": ("w2v_bert.v1", SSL | {"refine_at": 10, "dropout": 0.1, "noise": 0.3}),
        "w2v_bert": ("w2v_bert.v1", SSL | {"objective": "w2v_bert", "contrastive_depth": 1}),
        "best_rq": ("w2v_bert.v1", SSL | {"objective": "best_rq", "num_codebooks": 2}),
        "swap": ("w2v_bert.v1", SSL | {"objective": "swap", "layer": 2, "equalise": 0.5}),
        "spidr": ("ssl_encoder.v1", SSL | {"objective": "spidr", "num_codebooks": 2}),
        "chroma": ("w2v_bert.v1", SSL | {"objective": "chroma", "bands": "note", "warp": 0,
                   "window": 4096, "num_mels": 84, "normalise": "row", "transpose": 5}),
        "mel_kmeans": ("mel_kmeans.v1", {"num_clusters": 16}),
        "chroma_kmeans": ("chroma_kmeans.v1", {"num_clusters": 16, "chroma": "centred"}),
        "chroma_split": ("chroma_kmeans.v1", {"num_clusters": 16}),
        "register_kmeans": ("register_kmeans.v1", {"num_clusters": 16}),
        "ssl_kmeans": ("ssl_kmeans.v1", {"num_clusters": 16, "layer": 2,
                       "pretrained": tiny_model("Hubert")}),
    }  # fmt: skip
    codec: Json = SOUNDSTREAM
    for name, (use, options) in kinds.items():
        tokenizer = {"use": use, "options": options, "training": T}
        config = {"semantic_tokenizer": tokenizer, "codec": codec, "stages": [semantic, acoustic]}
        if codec is SOUNDSTREAM:  # trained once, with the first of them
            segue("train", "codec", *named("codec", config), "--data", "data", "-o", "runs/codec")
            found["soundstream"] = losses(Path("runs/codec"))
            codec = {"use": "soundstream.v1", "checkpoint": newest("runs/codec/codec")}
            config["codec"] = codec
        found[name] = trained(name, config, "all" if name == "hubert" else "semantic_tokenizer")
        common = (*named(name, config), "--data", "data", "-o", f"runs/{name}", "--json")
        segue("tokenize", *common)
        found[name]["tokens"] = stored(Path("runs", name, "tokens"))
    alone = [stage("acoustic", "acoustic", (), "delay_transformer.v1")]
    polar = SPECTRAL["options"] | {"head": "polar", "subframes": 2, "quantizer_bypass": 0.5}
    found["polar"] = trained("polar", {"codec": SPECTRAL | {"options": polar}, "stages": alone})
    for kind in ("Encodec", "Dac", "Mimi"):
        options = {"pretrained": tiny_model(kind), "num_levels": 3}
        config = {"codec": {"use": f"{kind.lower()}.v1", "options": options}, "stages": alone}
        run = ("--data", "data", "-o", f"runs/{kind}", "--json")
        segue("tokenize", *named(kind, config), *run)
        found[kind] = stored(Path("runs", kind, "tokens"))
    return found


def families() -> Json:
    """Train every family of stage models and go on from a prompt with each."""
    recordings()
    flat, delay, masked = (f"{kind}_transformer.v1" for kind in ("flat", "delay", "masked"))
    tokens = {"use": "mel_kmeans.v1", "options": {"num_clusters": 16}, "training": T}
    first = stage("semantic", "semantic", (), flat)
    stages = [first, stage("acoustic", "acoustic", ("semantic",), delay)]
    base = {"semantic_tokenizer": tokens, "codec": SPECTRAL, "stages": stages}
    found = {"base": trained("base", base)}
    done = Path("runs/base/pipeline").resolve()
    base = {
        "semantic_tokenizer": {"use": "mel_kmeans.v1", "checkpoint": f"{done}/semantic_tokenizer"},
        "codec": {"use": "spectral_codec.v1", "checkpoint": f"{done}/codec"},
    }
    given = {**first, "lm": {"use": flat, "checkpoint": f"{done}/stages/semantic"}}
    guided = {"condition_dropout": 0.3, "sampling": {"guidance": 2.0}}
    some = {"freeze": ["*norm*"], "ema": 0.9, "accumulate": 2, "precision": "bf16-mixed"}
    start = {"start_from": f"{done}/stages/acoustic"}
    lora = {"lora": {"rank": 4, "also_train": ["heads.*"]}}
    text = {"lora": {"rank": 2, "also_train": ["tokens.*", "heads.*"]}}
    few = {"sampling": {"iterations": [4, 2]}}
    kinds: dict[str, list[Json]] = {
        "cascade": [
            stage("semantic", "semantic", (), flat, positions="sequence", attention_window=20,
                  training={"activation_checkpointing": True, "schedule": "linear"}),
            stage("coarse", "acoustic[0:2]", ("semantic",), flat, given_repeats="remove", **guided),
            stage("fine", "acoustic[2:3]", ("acoustic[0:2]",), flat, overlap=0.0,
                  position_encoding="relative", training=some),
        ],
        "alone": [stage("acoustic", "acoustic", (), delay, end_of_audio=True, training=lora)],
        "custom": [stage("acoustic", "acoustic", ("semantic",), delay, pattern="custom",
                         stride=2, delays=[0, 1, 3], **guided)],
        "parallel": [stage("acoustic", "acoustic", ("semantic",), delay, pattern="parallel")],
        "flattened": [stage("acoustic", "acoustic", ("semantic",), delay, pattern="flattened")],
        "depth": [stage("acoustic", "acoustic", ("semantic",), "depth_transformer.v1",
                        level_depth=1, decoding={"weights": "int8"})],
        "conformer": [stage("acoustic", "acoustic", ("semantic",), masked, **guided)],
        "masked": [stage("acoustic", "acoustic", ("semantic",), masked, blocks="transformer",
                         level_shares=[4, 1], longest_prompt=0.6, training=start, **few)],
        "llama": [stage("acoustic", "acoustic", ("semantic",), "hf_causal.v1", architecture=LLAMA)],
        "adapted": [stage("acoustic", "acoustic", ("semantic",), "hf_causal.v1",
                          pretrained=tiny_model("Llama"), training=text)],
    }  # fmt: skip
    for name, stages in kinds.items():
        whole = name in ("cascade", "alone")
        config = base | {"stages": stages if whole else [given, *stages]}
        if name == "alone":
            del config["semantic_tokenizer"]
        # A part that starts from text weights cannot be exported by the run that trains it.
        found[name] = trained(name, config, "stages.acoustic" if name == "adapted" else "all")
        del found[name]["tokens"]
    common = ("train-detector", "--data", "data", "-o", "detector", "-p", done, "--json")
    sizes = ("--items", 6, "--prompt-seconds", 0.5, "--seconds", 1, "--steps", 20)
    found["detector"] = plain(json.loads(segue(*common, *sizes)))
    found["detector's losses"] = losses(Path("detector"))
    files = ("detect", "data/group0/0.wav", "--detector", "detector/detector", "--json")
    found["detector's verdict"] = plain(json.loads(segue(*files)))
    return found


def save(target: Path) -> None:
    """Make what later versions must load: pipelines, and trainings that stopped after four steps
    of six."""
    recordings()
    steps = T | {"steps": 6, "save_every": 4}
    tiny = {"sample_rate": 4000, "width": 8, "window": 160}
    options = SSL | tiny | {"num_clusters": 8, "num_mels": 16, "kernel": 3}
    tokens = {"use": "w2v_bert.v1", "options": options, "training": steps}
    opponent = {"wave_scales": [], "stft_windows": [64], "stft_channels": 2, "stft_residual": False}
    options = SPECTRAL["options"] | tiny | {"hop": 80, "num_levels": 2, "adversary": opponent}
    codec = SPECTRAL | {"options": options, "training": steps | {"adversary_from": 2}}
    flat, delay = "flat_transformer.v1", "delay_transformer.v1"
    lora = {"rank": 2, "also_train": ["heads.*"]}
    stages = [
        stage("semantic", "semantic", (), flat, training=steps | {"lora": lora}),
        stage("acoustic", "acoustic", ("semantic",), delay, training=steps | {"ema": 0.9}),
    ]
    config = {"semantic_tokenizer": tokens, "codec": codec, "stages": stages}
    segue("train", "all", *named("saved", config), "--data", "data", "-o", "run", "--json")
    pipeline = load("run/pipeline")
    pipeline.save_pretrained("pipeline")
    pipeline.save_pretrained("pipeline_int8", lm_dtype=torch.int8)
    shutil.rmtree("run/pipeline")
    for events in Path("run").rglob("tensorboard"):
        shutil.rmtree(events)
    for part in ("codec", "semantic_tokenizer"):
        shutil.copytree(Path("run", part), Path("stopped", part))
    shutil.copy("run/config.yaml", "stopped")
    for late in [*Path("stopped").rglob("step-00000006*"), *Path("run/stages").rglob("step-*6")]:
        shutil.rmtree(late)
    for early in [*Path("run").glob("[cs]*/step-00000004"), *Path("run").glob("s*r/step-00000006")]:
        shutil.rmtree(early)
    Path("run/codec/step-00000006/trainer.safetensors").unlink()
    target.mkdir(parents=True)
    for name in ("run", "stopped", "pipeline", "pipeline_int8"):
        shutil.copytree(name, target / name)


def saved() -> Json:
    """Load what version 0.1 saved: go on from a prompt, and go on training for two steps."""
    recordings()
    shutil.copytree(SAVED, "saved")
    found: dict[str, Json] = {}
    for name in ("pipeline", "pipeline_int8"):
        made = load(Path("saved", name)).continue_(melody(1.3, 99), RATE, seconds=0.5, seed=5)
        found[name] = result(made)
    parts = {
        "stopped": ("codec", "semantic_tokenizer"),
        "run": ("stages.semantic", "stages.acoustic"),
    }
    for run, names in parts.items():
        for name in names:
            common = ("--config", f"saved/{run}/config.yaml", "--data", "data", "--json")
            segue("train", name, *common, "-o", f"saved/{run}")
        found[run] = losses(Path("saved", run))
    return found
