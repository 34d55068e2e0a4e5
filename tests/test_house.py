"""The order of the house: who may import whom, what --help may load, and that the package lists are complete."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cvvae_cli"

# A file imports only from lines above its own; files on one line are strangers to each other.
LAYERS = [
    ["errors"],
    ["geometry", "checked_values", "frame_clock", "deinterlacing", "exif"],
    ["config", "torch_files", "provenance", "convolution", "matmul_rate", "host_memory", "ahead", "stage_clock", "whole_file", "run_journal", "cpu_info"],
    ["peak_memory", "reading", "machine", "picture_sequence", "container_tags", "standard_input", "standard_output"],
    ["posterior", "layers", "compact", "tiling", "parked_rows", "metrics", "colour", "media", "output_errors", "model_names", "official_names", "safetensors_header", "bench_report", "window_timing"],
    ["upsampling", "video_encoder", "packet_file", "piece_file", "stored_latents", "packet_times", "video_info", "latent_file", "plain_latents", "agreement", "fidelity"],
    ["window_convolution", "sidecar", "video_decoder", "small_tensor", "mended_latents", "fidelity_picture"],
    ["latent_writer", "anchors", "video_container", "reading_notes"],
    ["video_writer", "picture_writer", "stream_writer"],
    ["video_io"],
    ["autoencoder", "demo_clip", "latent_statistics", "training.streams", "training.perceptual", "training.discriminator"],
    ["lockstep", "checkpoint", "plain_form", "training.losses", "training.linear_code", "training.inflation", "training.sources"],
    ["lockstep_memory"],
    ["norm_contract"],
    ["image_model", "run_identity", "codec", "latent_video", "memory_model", "operation_count", "training.footage", "training.video_code", "training.recipe"],
    ["decoded_frames", "running_check"],
    ["decode_damage"],
    ["encoding", "decoding", "benchmark", "clip_windows", "paired_latents", "lipschitz_bound", "training.windows", "training.regularisation"],
    ["roundtrip", "file_benchmark", "fidelity_benchmark", "compatibility", "training.start", "training.objective", "training.optimiser", "training.distributed", "training.journal", "training.run_folder"],
    ["training.loop"],
    ["training.narrowing"],
    ["console"],
    ["commands.options"],
    ["commands.check"],
    ["commands.encode", "commands.decode", "commands.roundtrip", "commands.info", "commands.models", "commands.bench", "commands.train", "commands.demo", "commands.compat", "commands.verify"],
    ["app"],
    ["__main__"],
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "cvvae_cli.commands":
            found |= {f"commands.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cvvae_cli."):
            found.add(node.module.removeprefix("cvvae_cli."))
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("cvvae_cli.") for alias in node.names if alias.name.startswith("cvvae_cli.")}
    return found


def test_imports_only_point_upwards():
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    files = {module_name(path): path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    assert set(files) == set(level), "a module is missing from LAYERS, or gone"
    wrong = [f"{name} imports {other}" for name, path in files.items() for other in imports_of(path) if level[other] >= level[name]]
    assert not wrong


def test_kernels_know_nothing_of_the_package():
    assert all("cvvae_cli" not in path.read_text(encoding="utf-8") for path in (ROOT / "kernels").rglob("*.py"))


def test_help_loads_no_torch_and_no_video():
    code = "import sys, cvvae_cli.app; sys.exit(', '.join(m for m in ('torch', 'av', 'triton', 'huggingface_hub') if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_package_folder_is_listed_for_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in PACKAGE.rglob("__init__.py")}
    assert set(listed) == folders | {"cvvae_kernels"}


def test_public_names_lead_somewhere():
    import cvvae_cli

    for name in cvvae_cli.__all__:
        assert getattr(cvvae_cli, name) is not None
