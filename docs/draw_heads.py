"""Draw one generated head as every MRI contrast and CT window, for docs/jobs/synthesize.md.

python docs/draw_heads.py docs/heads.png
"""

import sys

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from voxelwave.data.modalities.ct import CT
from voxelwave.ops.seeding import numpy_generator
from voxelwave.physics.heads3d import MRI_CONTRASTS, draw_head, render_ct, render_mri

SIZE = 128


def main(path: str) -> None:
    """Draw an axial and a sagittal slice of each; the angiogram is a maximum over all slices, as it is read."""
    generator = numpy_generator(4, "picture")
    labels = draw_head(generator, size=SIZE)
    volumes = {contrast: render_mri(labels, generator, contrast=contrast) for contrast in MRI_CONTRASTS}
    windows = CT()(render_ct(labels, generator))
    volumes |= dict(zip(("CT brain", "CT blood", "CT bone"), windows, strict=True))
    figure = Figure(figsize=(2 * len(volumes), 4.3), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(volumes))
    for column, (title, volume) in enumerate(volumes.items()):
        axial, sagittal = volume[:, :, int(0.58 * SIZE)], volume[int(0.44 * SIZE)]
        if title == "MRA":
            axial, sagittal = volume.max(2), volume.max(0)
        top = np.percentile(volume, 99.8)
        for row, image in enumerate((axial, sagittal)):
            axes[row, column].imshow(image.T, origin="lower", cmap="gray", vmin=0, vmax=top)
            axes[row, column].set_axis_off()
        axes[0, column].set_title(title, color="white")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main(sys.argv[1])
