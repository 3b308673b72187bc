"""A scan through the encoder, from files to files: its features, and overlays of what the encoder attends to."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DiffusionFMLib.jobfiles import (
    ATTENTION,
    CHECK,
    ENCODE,
    INFLUENCE,
    SURPRISE,
    WRITE,
    announce_file,
    announce_map,
    provenance,
    read_scan,
    result_key,
    warn_of_voxels,
)
from DiffusionFMLib.maps import FitStatus, MapSpec, ParameterMap
from DiffusionFMLib.overlays.kinds import ALL, FEATURES, ON_ATTENTION, OVERLAYS, wanted
from DiffusionFMLib.reporting import JobReport
from DiffusionFMLib.session import Session
from DiffusionFMLib.settings import EncodeSettings, FitSettings

if TYPE_CHECKING:
    import torch

    from DiffusionFMLib.acquisition import Acquisition
    from DiffusionFMLib.encoder.checkpoint import TrainedEncoder
    from DiffusionFMLib.overlays.encoded import EncodedScan

ENCODER = "encoder"
"""What maps are said to be made by."""


def encode(settings: EncodeSettings, report: JobReport, session: Session, arrays: Path | None) -> dict[str, Any]:
    """Encode a scan, and write its features and overlays; returns plain JSON.

    The session remembers it, so that a viewer's questions about places are answered without encoding again.
    """
    from DiffusionFMLib.encoder.attention import check_attention
    from DiffusionFMLib.encoder.checkpoint import encoder_file, load_encoder
    from DiffusionFMLib.fitting.device import choose_device
    from DiffusionFMLib.io import digest_of, outputs

    out = outputs.output_folder(settings.out, arrays)
    weights = encoder_file(settings.encoder)
    device = choose_device(settings.device)
    check_attention(settings.attention, device)
    # before the scan, which takes longer to read
    trained = load_encoder(weights, device)
    acquisition = read_scan(settings, report, session)
    report.enter(CHECK)
    quality = session.quality(report)
    for finding in quality.findings:
        report.warning("quality", finding)
    warn_of_voxels(acquisition, report)
    digest = digest_of(weights)
    # with little memory, surprise and attention rest on fewer directions
    parts = digest, f"{settings.memory_mib} MiB"
    # what has all overlays has those that are asked for
    enough = [replace(settings, overlays=choice) for choice in dict.fromkeys((settings.overlays, ALL))]
    by_key = {result_key(session.digest(report), each, EncodeSettings, *parts): each for each in enough}
    summary = out / f"{acquisition.name}_{FEATURES}_summary.json"
    result = {"name": acquisition.name, "out": str(out), "quality": quality.to_dict()}
    if arrays is None and (kept := _finished(summary, by_key)) is not None:
        files = [*kept["files"], summary.name]
        return {**result, **kept, "files": files, "reused": files}

    key = next((each for each in by_key if session.encoded(each) is not None), next(iter(by_key)))
    settings, encoded = by_key[key], session.encoded(key)
    if encoded is None:
        encoded = _encoded(session.prepare(settings, report), trained, settings, report, device)
        session.keep_encoded(key, encoded)
    report.enter(WRITE)
    outputs.discard_stale(out)
    announce_file(report, outputs.write_dataset_description(out), "sidecar", "dataset_description")
    ours = {
        **provenance(key, settings, EncodeSettings, quality.findings),
        "method": ENCODER,
        "weights": {"file": weights.name, "sha256": digest},
        "memory_mib": settings.memory_mib,
        "notes": list(encoded.acquisition.notes),
    }
    written = [_write_tokens(encoded, ours, out, acquisition.name)]
    announce_file(report, written[0], "sidecar", "tokens")
    maps = [name for name in encoded.names if not OVERLAYS[name].of_point]
    for done, map in enumerate(encoded.maps(ours)):
        report.progress(done, len(maps), WRITE)
        written.append(outputs.write_map(map, OVERLAYS[map.spec.name].path(out, acquisition.name)))
        announce_map(report, map, written[-1], arrays, ENCODER)
    made: dict[str, Any] = {
        "files": [path.name for path in written], "overlays": maps, "blocks": encoded.blocks, "heads": encoded.heads,
    }  # fmt: skip
    vector = encoded.features.passes[0].summary.tolist()
    announce_file(
        report, outputs.write_json(summary, {**made, "Provenance": ours, "Summary": vector}), "sidecar", "summary"
    )
    report.progress(1, 1, WRITE)
    return {**result, **made, "files": [*made["files"], summary.name]}


def _encoded(
    scan: Acquisition, trained: TrainedEncoder, settings: EncodeSettings, report: JobReport, device: torch.device
) -> EncodedScan:
    """All that was asked for of a prepared scan."""
    from DiffusionFMLib.encoder.volume import EncodingOptions
    from DiffusionFMLib.overlays import attention, encoded, features

    options = EncodingOptions(memory_mib=settings.memory_mib, half=settings.half, attention=settings.attention)
    report.enter(ENCODE)
    made = features.features_of(scan, trained, report, options, device)
    asked = wanted(settings.overlays)
    surprised = watched = influential = None
    if "surprise" in asked:
        surprised = _surprise(scan, trained, settings, report, device)
    if asked & ON_ATTENTION:
        report.enter(ATTENTION)
        geometry = "directions" in asked
        watched = attention.watch(scan, trained, report, settings.memory_mib, device, geometry=geometry)
    if "influence" in asked:
        influential = _influence(scan, trained, made, report, device, settings.memory_mib)
    return encoded.EncodedScan(scan, made, surprised, watched, influential)


def _surprise(
    scan: Acquisition, trained: TrainedEncoder, settings: EncodeSettings, report: JobReport, device: torch.device
) -> Any:
    """Where the scan is not as expected; None where there is too little to expect from."""
    from DiffusionFMLib.overlays import surprise

    directions = int((~scan.gtab.b0_mask & ~scan.gtab.trace_mask).sum())
    if directions < surprise.MIN_VOLUMES or not trained.network.shape.decoder_blocks:
        report.warning(
            "no-surprise",
            f"There is no map of surprise: it takes {surprise.MIN_VOLUMES} directions (the scan has {directions}) and "
            "an encoder with a decoder.",
        )
        return None
    report.enter(SURPRISE)
    return surprise.surprise(scan, trained, report, settings.seed, device, settings.memory_mib)


def _influence(
    scan: Acquisition, trained: TrainedEncoder, features: Any, report: JobReport, device: torch.device, memory: int
) -> Any:
    """How much places matter to a readout of FA; None where the scan has none."""
    from DiffusionFMLib.fitting import fit
    from DiffusionFMLib.overlays.influence import Readout, influence
    from DiffusionFMLib.physics import METHODS, MODELS

    settings = FitSettings(method="ols", device=str(device))
    reason = METHODS[settings.method].unsupported(MODELS[settings.model], scan.gtab)
    if reason is not None:
        report.warning("no-influence", f"There is no map of influence, which is that on FA: {reason}")
        return None
    report.enter(INFLUENCE)
    maps = fit(scan, MODELS[settings.model], settings, report).maps
    inside = maps["status"].data != FitStatus.OUTSIDE
    return influence(scan, trained, Readout.of(features.passes[0], maps["fa"].data, inside), report, device, memory)


def _write_tokens(encoded: EncodedScan, ours: dict[str, Any], out: Path, stem: str) -> Path:
    """Write the features themselves, in the grid of patches."""
    from DiffusionFMLib.io import outputs

    first = encoded.features.passes[0]
    count = first.tokens.shape[-1]
    description = "Learned features of each patch, mean over volumes; 0 where there is no brain."
    names = tuple(f"feature{number}" for number in range(count))
    spec = MapSpec("tokens", "Features", "", description, (-3.0, 3.0), components=names)
    map = ParameterMap(spec, first.tokens, first.slabs.affine, ours)
    return outputs.write_map(map, out / f"{stem}_{FEATURES}_tokens.nii.gz")


def _finished(summary: Path, keys: Container[str]) -> dict[str, Any] | None:
    """What an earlier run with one of these keys left whole in the folder."""
    from DiffusionFMLib.io import outputs

    try:
        values = json.loads(summary.read_text(encoding="utf-8"))
        key = values["Provenance"]["key"]
        if key not in keys:
            return None
        if not all(outputs.finished_map(summary.parent / name, key) for name in values["files"]):
            return None
        return {name: values[name] for name in ("files", "overlays", "blocks", "heads")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
