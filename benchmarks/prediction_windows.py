"""What a window of 48³ costs when a volume is segmented: by width of the decoder, and by windows at a time.

python benchmarks/prediction_windows.py [--rounds 9]

Wall time of a forward pass on two idle cores, medians of rounds that take all in turn, beside MONAI's UNet with about
as many parameters as the decoder of each width has together with the demo's backbone, and beside that backbone alone.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from statistics import median

import torch
from torch import nn

from prediction_speed import model_of, unet_of
from reporting import publish, table

SIDE, WIDTHS, AT_ONCE = 48, (32, 16), (1, 2, 4)
CHANNELS = {32: 25, 16: 18}  # of the UNet's first level


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    asked: dict[str, nn.Module] = {f"ours, width {width}": model_of(width) for width in WIDTHS}
    asked |= {f"UNet for width {width}": unet_of(CHANNELS[width]) for width in WIDTHS}
    taken: dict[tuple[str, int], list[float]] = defaultdict(list)
    with torch.inference_mode():
        for _ in range(arguments.rounds + 1):
            for number in AT_ONCE:
                windows = torch.rand(number, 1, SIDE, SIDE, SIDE)
                for name, model in {**asked, "backbone": asked["ours, width 16"].features}.items():
                    began = time.perf_counter()
                    model(windows)
                    taken[name, number].append((time.perf_counter() - began) / number)
    cost_ms = {key: round(1000 * median(times[1:]), 1) for key, times in taken.items()}  # the first round warms up
    names = dict.fromkeys(name for name, _ in cost_ms)
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in asked.items()}
    figures = {
        "window": SIDE,
        "parameters": sizes,
        "ms_a_window": {name: {str(number): cost_ms[name, number] for number in AT_ONCE} for name in names},
    }
    head = "model | parameters | " + " | ".join(f"ms a window, {number} at a time" for number in AT_ONCE)
    rows = [
        [name, f"{sizes[name]:,}" if name in sizes else "", *(f"{cost_ms[name, number]:.0f}" for number in AT_ONCE)]
        for name in names
    ]
    publish("prediction_windows", figures, table(head, rows), quick=arguments.rounds < 5)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
