"""Draw how the tasks of some runs got on with each other, in a picture and a page that explains it.

    python tools/analysis/plot_interference.py work_dirs/RUN [work_dirs/RUN ...] --baseline sum

The scalars are read from the files that TaskInterferenceHook wrote: MMEngine's own
``<timestamp>/vis_data/scalars.json``, or Detectron2's ``metrics.json``. The page stands beside the
picture, has everything in it, and can be sent to somebody as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from interference.page import page
from interference.picture import draw
from interference.reading import labels, read_curves, span
from interference.training import pictures_of


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="work directories")
    parser.add_argument(
        "--baseline", metavar="NAME", help="the run to draw the others relative to, by its name"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("interference.png"),
        help="PNG to write; further ones and the page go beside it, as NAME-losses.png, .html "
        "(default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    if args.out.suffix.lower() != ".png":
        raise SystemExit(f"--out: expected a name that ends in .png, got {str(args.out)!r}")
    folders = dict(zip(labels(args.runs), args.runs, strict=True))
    if args.baseline is not None and args.baseline not in folders:
        names = ", ".join(repr(name) for name in folders)
        raise SystemExit(f"--baseline: no run is called {args.baseline!r}; valid are {names}")
    runs = {name: read_curves(folder) for name, folder in folders.items()}
    if args.baseline is not None:
        first, last = span(runs[args.baseline])
        for name, (start, end) in {name: span(curves) for name, curves in runs.items()}.items():
            if end < first or last < start:
                raise SystemExit(
                    f"--baseline: {args.baseline!r} has the iterations {first} to {last} and "
                    f"{name!r} {start} to {end}; none are common to both"
                )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure = draw(runs, args.out, args.baseline)
    others, written = [], [args.out]
    for name, title, reading, draw_more in pictures_of(runs):
        written.append(args.out.with_stem(f"{args.out.stem}-{name}"))
        others.append((title, reading, draw_more(runs, written[-1])))
    html = args.out.with_suffix(".html")
    html.write_text(page(figure, runs, folders, args.baseline, others), encoding="utf-8")
    print("wrote", ", ".join(map(str, written)), "and", html)


if __name__ == "__main__":
    main()
