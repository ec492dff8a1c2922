"""Complete a patient's MRI: synthesise the sequences that were not acquired from those that were.

python examples/reconstruct_missing.py t1=t1.nii.gz flair=flair.nii.gz --model checkpoints/tiny --out completed

Writes one NIfTI file for each absent sequence, on the grid of the input, and a note on how it was made; with --keep-out
also a page that compares the sequences left out with the real ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np

import bmmae
from bmmae.inference import ReconstructOptions, reconstruct_to_folder
from bmmae.modalities import canonical
from bmmae.reconstruction_page import study_page


def main(words: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(description="Synthesise the absent sequences of one patient.")
    parser.add_argument("images", nargs="+", metavar="NAME=FILE", help="skull-stripped images on one grid")
    parser.add_argument("--model", required=True, help="a model folder, a run folder or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder for the synthesised images")
    parser.add_argument("--keep-out", nargs="+", default=[], metavar="NAME", help="hide these, and compare with them")
    given = parser.parse_args(words)
    try:
        complete(given, parser)
    except bmmae.BmmaeError as error:  # a file that is not there, an unknown sequence: one sentence says it all
        parser.exit(2, f"error: {error}\n")
    return 0


def complete(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Synthesise what is absent, and say where it is."""
    model = bmmae.load_model(given.model)
    known = model.model_config.modalities
    pairs = [pair.partition("=") for pair in given.images]
    images = {canonical(name, known): path for name, _, path in pairs if path}
    if len(images) < len(pairs):
        parser.error(f"expected NAME=FILE, each name once, got {' '.join(given.images)}")
    hidden = {canonical(name, known) for name in given.keep_out}
    if hidden - images.keys():
        parser.error(f"--keep-out {', '.join(hidden - images.keys())}: no such image is given")
    if hidden == images.keys():
        parser.error("--keep-out leaves no image to start from: give one more, or hide fewer")

    options = ReconstructOptions(subset=tuple(name for name in images if name not in hidden))
    page = study_page if hidden else None
    for name, path in reconstruct_to_folder(model, images, given.out, options=options, page=page).items():
        values = np.asarray(nib.load(path).dataobj)
        print(f"{path}: {name}, {values.shape} voxels, median {np.median(values[values != 0]):.1f} inside the brain")


if __name__ == "__main__":
    raise SystemExit(main())
