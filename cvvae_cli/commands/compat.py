"""`cvvae compat`."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvvae_cli.commands import options as o
from cvvae_cli.console import Reporter, counted
from cvvae_cli.errors import OutputError, UsageError, VideoError
from cvvae_cli.model_names import shown_name
from cvvae_cli.whole_file import written_whole

if TYPE_CHECKING:
    from cvvae_cli.compatibility import Compatibility, Psnr
    from cvvae_cli.latent_statistics import ChannelHistogram
    from cvvae_cli.lipschitz_bound import LipschitzBound

EPILOG = o.examples(
    "cvvae compat --image image.safetensors clips/*.mp4 --size 256",
    "cvvae compat --image sd-vae/ --model video.safetensors clips/*.mp4 --crop 256 --bound --plot latents.png",
)
PLOT_SUFFIX = ".png"
Table = tuple[str, list[str], list[list[str]]]


def compat(
    clips: Annotated[list[Path], typer.Argument(metavar="CLIP...", help="Videos and pictures to measure on.")],
    image: Annotated[
        str,
        typer.Option(help="The image autoencoder: a diffusers folder or hub id, or what --model takes.", rich_help_panel=o.MODEL),
    ],
    model: o.Model = None,
    revision: o.Revision = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    frames: Annotated[int, typer.Option(metavar="N", help="Frames per window: 1, 5, 9, 13, 17, ...")] = 17,
    size: Annotated[int | None, typer.Option(metavar="PX", help="Resize to this short side; smaller frames stay.")] = None,
    crop: Annotated[
        int | None, typer.Option(metavar="PX", help="Keep a centre square of this side; whole frames by default.")
    ] = None,
    max_windows: Annotated[int | None, typer.Option(metavar="N", help="At most N windows of each clip.")] = None,
    keyframes: Annotated[
        str, typer.Option("--map", help="Map of the latents' distances: first, slice, average or random.")
    ] = "random",
    seed: Annotated[int, typer.Option(metavar="N", help="Of every draw.")] = 0,
    bound: Annotated[
        bool, typer.Option("--bound", help="Measure the image decoder's lower Lipschitz constant and the bound it gives.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the latent channels' histograms.")] = None,
    overwrite: o.Overwrite = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure whether a video model's latents keep the space of an image model's latents."""
    reporter = Reporter(as_json, quiet)
    for path in clips:
        o.require_file(path, VideoError)
    _require_plot(plot, overwrite)
    from cvvae_cli.clip_windows import WindowConfig, plan_clip, read_windows
    from cvvae_cli.compatibility import MAPS, CompatibilityMeter
    from cvvae_cli.image_model import load_image_model

    if keyframes not in MAPS:
        raise UsageError(f"Map {keyframes!r} is unknown; pass --map {', '.join(MAPS[:-1])} or {MAPS[-1]}.")
    config = WindowConfig(frames, size, crop, max_windows)
    plans = [plan_clip(path, config) for path in clips]
    video = o.model_of(model, revision, device, dtype)
    pictures = load_image_model(image, video.device, video.dtype)
    meter = CompatibilityMeter(pictures, video, keyframes, seed, bound)
    counts = [plan.num_windows for plan in plans]
    total = None if None in counts else frames * sum(counts)
    done = 0
    with reporter.progress("compat") as progress:
        for plan in plans:
            for window in read_windows(plan, config):
                if window.shape[2] < frames:
                    reporter.note(f"{plan.path} is shorter than {counted(frames, 'frame')}: one window of {window.shape[2]}.")
                meter.add(window, str(plan.path))
                done += frames
                progress(done, total)
    if bound:
        reporter.note("computing the image decoder's Jacobian at a few crops")
    result = meter.result()
    if plot is not None:
        _draw(result.histograms, plot)
    values = {
        **o.described(video), "image": shown_name(image), "image_sha256": pictures.identity, "clips": len(plans), "frames": frames,
        "short_side": size, "crop": crop, "map": keyframes, "seed": seed, **result.to_dict(), "plot": plot and str(plot),
    }  # fmt: skip
    fewest, features = min((min(d.frames, d.reference_frames), d.features) for d in result.distances.values())
    if fewest <= features:
        counts = f"{counted(fewest, 'latent frame')} for {features} features"
        reporter.note(f"Frechet distances of {counts} are biased upwards: compare only those of equal frames, or add clips.")
    tables = _tables(result, keyframes)
    for title, head, rows in tables[:1] if as_json else tables:
        reporter.grid(values, title, head, rows)


def _tables(result: "Compatibility", keyframes: str) -> list[Table]:
    sections = [_psnr_table(result), _distance_table(result, keyframes), _channel_table(result)]
    return sections if result.bound is None else [*sections, *_bound_tables(result.bound)]


def _psnr_table(result: "Compatibility") -> Table:
    """One row per map."""
    rows = [
        [name, *(_psnr(figure) for figure in (row.image_of_video, row.image_own, row.video_of_image, row.video_own))]
        for name, row in result.psnr.items()
    ]
    count = next(iter(result.psnr.values())).video_own.clips
    title = f"PSNR, dB, ± standard error over {counted(count, 'clip')}; D_i(...) against psi(x), D_v(...) against x"
    return title, ["psi", "D_i(E_v(x))", "D_i(E_i(psi))", "D_v(E_i(psi))", "D_v(E_v(x))"], rows


def _psnr(figure: "Psnr") -> str:
    error = figure.standard_error_db
    return f"{figure.mean_db:.2f}" + ("" if error is None else f" ± {error:.2f}")


def _distance_table(result: "Compatibility", keyframes: str) -> Table:
    rows = [
        [
            name, f"{d.frames} / {d.reference_frames}", f"{d.frechet:.4g}",
            *(f"{value:.4f}" for value in (d.sliced_w2, d.mean_gap, d.std_gap, d.skew_gap)),
        ]
        for name, d in result.distances.items()
    ]
    title = f"Distance from the image latents of map {keyframes}; zero line: image latents, half the windows against the rest"
    return title, ["", "frames", "Frechet", "sliced W2", "mean", "std", "skew"], rows


def _channel_table(result: "Compatibility") -> Table:
    image, video = result.channels["image"], result.channels["video"]
    rows = [
        [f"{channel}", *(f"{side[name][channel]:.3f}" for name in ("mean", "std", "skew") for side in (image, video))]
        for channel in range(len(image["mean"]))
    ]
    head = [f"{name} {side}" for name in ("mean", "std", "skew") for side in ("E_i", "E_v")]
    return "Latent channels", ["channel", *head], rows


def _bound_tables(bound: "LipschitzBound") -> list[Table]:
    measured = [
        ["sliced W2: W2 is at least this", f"{bound.sliced_w2:.4f}"],
        ["distance of the pairs E_v(x), E_i(psi(x)): W2 is at most this", f"{bound.paired:.4f}"],
        ["spread of the image latents", f"{bound.spread:.4f}"],
        ["L_v: squared error of D_i(E_v(x)), summed over a frame", f"{bound.loss_video:.4g}"],
        ["L_i: squared error of D_i(E_i(psi(x))), summed over a frame", f"{bound.loss_image:.4g}"],
    ]
    rows = [
        [c.source, f"{c.m:.4g}", *("none" if value is None else f"{value:.4g}" for value in (c.decoded, c.bound)), c.verdict]
        for c in bound.constants
    ]
    title = (
        "W2 <= (sqrt(L_v) + sqrt(L_i)) / m per latent value. vacuous: above the spread, so one latent for every video would do."
        " weak: above the measured distance of the pairs, which bounds W2 too. refuted: a pair has a smaller secant."
        " Every m is what was found, and none is proven: the true one may be smaller and the bound larger."
    )
    return [
        ("Measured on the windows; latent distances are root mean squares per latent value", ["", "value"], measured),
        (title, ["m measured as", "m", "decoded / m", "bound", "verdict"], rows),
    ]


def _require_plot(path: Path | None, overwrite: bool) -> None:
    """Find out before anything is measured whether a plot can be drawn."""
    if path is None:
        return
    if path.suffix.lower() != PLOT_SUFFIX:
        raise UsageError(f"Plot {path} must end in {PLOT_SUFFIX}; pass for example --plot latents{PLOT_SUFFIX}.")
    o.require_free(path, overwrite)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        message = f"Plot {path} needs matplotlib, which is not here; run pip install 'cvvae[compat]' or drop --plot."
        raise UsageError(message) from error


def _draw(histograms: list["ChannelHistogram"], path: Path) -> None:
    """A panel per channel, image and video latents in the same bins.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    columns = min(4, len(histograms))
    lines = -(-len(histograms) // columns)
    figure = Figure(figsize=(2.6 * columns, 1.9 * lines + 0.4), layout="constrained")
    for channel, histogram in enumerate(histograms):
        axes = figure.add_subplot(lines, columns, channel + 1)
        axes.stairs(histogram.image, histogram.edges, fill=True, alpha=0.4, label="image")
        axes.stairs(histogram.video, histogram.edges, label="video")
        axes.set_title(f"channel {channel}", fontsize=8)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    try:
        with written_whole(path) as part:
            part.write_bytes(drawn.getvalue())
    except OSError as error:
        raise OutputError(f"Plot {path} cannot be written ({error.strerror or error}); name another file.") from error
