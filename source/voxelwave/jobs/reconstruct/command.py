"""The commands below `voxelwave reconstruct`."""

from pathlib import Path
from typing import Annotated

import typer

from voxelwave.jobs.common.options import Overrides, Resume, leave


def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder to write the files of k-space to.")],
    source: Annotated[
        str,
        typer.Option(help="heads, phantoms, or a path: scans, a folder or a glob of them, or a .npy or .npz stack."),
    ] = "heads",
    layout: Annotated[str, typer.Option(help="challenge, fastmri or mrd (ISMRMRD).")] = "challenge",
    anatomy: Annotated[str, typer.Option(help="What files are named after: brain or knee.")] = "",
    volumes: Annotated[int, typer.Option(help="Number of volumes, at most; one of each file.")] = 16,
    slices: Annotated[int, typer.Option(help="Of a volume.")] = 4,
    size: Annotated[int, typer.Option(help="Pixels along each side; 0 keeps those of a path.")] = 128,
    coils: Annotated[int, typer.Option(help="Number of coils.")] = 8,
    noise: Annotated[float, typer.Option(help="Of a coil, relative to the brightest pixel.")] = 0.005,
    oversampling: Annotated[int, typer.Option(help="Along the read-out.")] = 1,
    acceleration: Annotated[int, typer.Option(help="Every how many lines are sampled.")] = 4,
    center_fraction: Annotated[float, typer.Option(help="The share of lines at the centre, all sampled.")] = 0.08,
    undersampled: Annotated[bool, typer.Option(help="Leave out what is not sampled; fastmri and mrd.")] = False,
    seed: Annotated[int, typer.Option(help="What all that is random follows from.")] = 0,
) -> None:
    """Make k-space of generated heads, or of images that you have; called again, it goes on.

    The exit code is 0, or 130 where it was stopped.
    """
    from voxelwave.jobs.reconstruct.synthesis.synthesize import synthesize_kspace

    outcome = synthesize_kspace(
        out,
        source=source,
        layout=layout,
        anatomy=anatomy,
        volumes=volumes,
        slices=slices,
        size=size or None,
        coils=coils,
        noise=noise,
        oversampling=oversampling,
        acceleration=acceleration,
        center_fraction=center_fraction,
        undersampled=undersampled,
        seed=seed,
    )
    leave(outcome)


def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, see configs/reconstruct.")],
    overrides: Overrides = None,
    resume: Resume = False,
    block: Annotated[
        int | None, typer.Option(help="End with this block; one after the first goes on from the block before.")
    ] = None,
    specialist: Annotated[str | None, typer.Option(help="Which specialist of the file; not needed for one.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Train all specialists, on several GPUs side by side.")] = False,
    router: Annotated[bool, typer.Option("--router", help="Train the router between specialists.")] = False,
) -> None:
    """Train a reconstruction in blocks of epochs, and leave weights, records and pictures in the folder of the run.

    The exit code is 0, or run.exit_code_when_stopped (130) where it was stopped.
    """
    from voxelwave.jobs.reconstruct.plan import load_plan
    from voxelwave.jobs.reconstruct.specialists import train_specialists

    leave(
        train_specialists(
            config,
            load_plan(config, overrides or []),
            specialist=specialist,
            every=every,
            router=router,
            block=block,
            resume=resume,
            overrides=overrides or [],
        )
    )


def evaluate(
    out: Annotated[Path, typer.Argument(help="The folder that `voxelwave reconstruct run` wrote.")],
    data: Annotated[str, typer.Argument(help="Files of k-space with targets: a file, a folder or a glob in quotes.")],
    data_range: Annotated[
        str, typer.Option(help="Largest value of the volume, of the slice, or of the file's attribute 'max'.")
    ] = "volume",
    anatomy: Annotated[str | None, typer.Option(help="Of files that do not say it: brain or knee.")] = None,
    worst: Annotated[int, typer.Option(min=0, help="Slices to show on the page.")] = 6,
) -> None:
    """Score reconstructions by SSIM, PSNR and NMSE, by anatomy and rate, and show the worst slices on a page."""
    from voxelwave.jobs.reconstruct.scoring.evaluate import evaluate_reconstructions

    evaluate_reconstructions(out, data, data_range=data_range, anatomy=anatomy, worst=worst)


def run(
    trained: Annotated[
        Path,
        typer.Argument(
            help="A run folder, or the one that holds specialists and their router; for other methods a configuration "
            "will do."
        ),
    ],
    data: Annotated[str, typer.Argument(help="A file of k-space, a folder or a glob in quotes.")],
    out: Annotated[Path, typer.Argument(help="Folder of the reconstructions; called again, it goes on.")],
    method: Annotated[
        str, typer.Option(help="network, or for comparison zero_filled, sense, l1_wavelet, grappa.")
    ] = "network",
    formats: Annotated[str, typer.Option("--format", help="Some of hdf5,nifti,dicom,png.")] = "hdf5",
    slices_at_once: Annotated[int, typer.Option(help="More are faster on a GPU, and take more memory.")] = 1,
    coils_at_once: Annotated[int | None, typer.Option(help="Fewer take less memory; all where not given.")] = None,
    regularisation: Annotated[
        float | None, typer.Option(help="Of sense (0.003), l1_wavelet (0.001) or grappa (0.01).")
    ] = None,
) -> None:
    """Reconstruct files of k-space; the specialist is picked by the image and the mask, never by a name.

    The exit code is 0, 1 where files could not be reconstructed, or 130 where it was stopped.
    """
    from voxelwave.jobs.reconstruct.run import reconstruct_files

    chosen = [name.strip() for name in formats.split(",")]
    leave(
        reconstruct_files(
            trained,
            data,
            out,
            method=method,
            formats=chosen,
            slices_at_once=slices_at_once,
            coils_at_once=coils_at_once,
            regularisation=regularisation,
        )
    )


def export_results(
    trained: Annotated[Path, typer.Argument(help="A run folder, or the one that holds specialists and their router.")],
    out: Annotated[Path, typer.Argument(help="Folder of the results, such as result.")],
) -> None:
    """Write runs as test_NAME/checkpoints/stepK/epoch-N and loss_log/stepK/loss_log.npy, with a table of all steps."""
    from voxelwave.jobs.reconstruct.export_results import export_results as export

    export(trained, out)
