"""Complete a patient's MRI: synthesise the sequences that were not acquired from those that were.

python examples/reconstruct_missing.py t1=t1.nii.gz flair=flair.nii.gz --model checkpoints/tiny --out completed

Writes one NIfTI file for each absent sequence, on the grid of the input, and with --keep-out a page that compares the
sequences left out with the real ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import bmmae
from bmmae.inference import ReconstructOptions, reconstruct_to_folder
from bmmae.reconstruction_page import study_page


def main(words: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(description="Synthesise the absent sequences of one patient.")
    parser.add_argument("images", nargs="+", metavar="NAME=FILE", help="skull-stripped images on one grid")
    parser.add_argument("--model", required=True, help="a model folder, a run folder or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder for the synthesised images")
    parser.add_argument("--keep-out", nargs="+", default=[], metavar="NAME", help="hide these, and compare with them")
    given = parser.parse_args(words)
    images = dict(pair.split("=", 1) for pair in given.images)

    model = bmmae.load_model(given.model)
    shown = {name: path for name, path in images.items() if name not in given.keep_out}
    for name, image in bmmae.reconstruct(model, shown).items():
        values = np.asarray(image.dataobj)
        print(f"{name}: {image.shape} voxels, median {np.median(values[values != 0]):.1f} inside the brain")

    # The same into a folder, with a note on how it was made and a page that compares it with what was kept out.
    options = ReconstructOptions(subset=tuple(shown))
    for name, path in reconstruct_to_folder(model, images, given.out, options=options, page=study_page).items():
        print(f"{name}: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
