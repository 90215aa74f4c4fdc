"""Tables that the papers print: metrics, and the Δm beside them; of paper C, scores."""

from __future__ import annotations

from typing import NamedTuple

from mtl_plugins.metrics import PAPER_METRICS, Convention


class Table(NamedTuple):
    """One data set of a printed table.

    Attributes:
        name: Paper and table.
        metrics: Names of the metrics that count, by task, in the order of the columns.
        convention: Unit and sign of the paper's Δm.
        factor: Factor between :func:`~mtl_plugins.metrics.delta_m` and the print.
        baseline: Row that the others are compared with.
        rows: Name, printed Δm and columns of each row, ``|`` between them.
    """

    name: str
    metrics: dict[str, tuple[str, ...]]
    convention: Convention
    factor: float
    baseline: str
    rows: str


DETECTION = {"detection": ("AP",), "sem_seg": ("mIoU",)}
BOXES_AND_MASKS = {"mask": ("AP", "AP50"), "detection": ("AP", "AP50")}
SEG_AND_DEPTH = {"depth": ("rmse",), "sem_seg": ("mIoU",)}
SEG_AND_DISPARITY = {"depth": ("abs_err",), "sem_seg": ("mIoU",)}

TABLES = (
    Table(
        "A Table 3, NYUv2",
        PAPER_METRICS["A NYUv2"],
        "loss",
        100.0,
        "39.33 64.55 0.5785 0.2339 26.12 20.44 28.04 54.56 66.84",
        """
        MTAN, equal | 1.29 | 40.88 66.14 0.5489 0.2290 27.83 23.23 23.63 48.93 62.15
        MTAN, uncertainty | -0.50 | 38.95 64.76 0.5423 0.2185 26.55 21.67 25.69 52.12 65.20
        MGDA, equal | 14.69 | 20.52 53.16 0.6635 0.2532 26.00 20.45 28.07 54.58 66.96
        MGDA, uncertainty | 0.71 | 36.42 63.54 0.5912 0.2286 25.51 19.95 28.89 55.70 68.06
        PCGrad, equal | 1.24 | 40.73 66.24 0.5558 0.2275 27.70 23.07 23.70 49.25 62.49
        PCGrad, uncertainty | -1.40 | 39.05 65.10 0.5366 0.2163 26.36 21.35 26.38 52.81 65.70
        GradDrop, equal | 1.47 | 40.56 66.13 0.5538 0.2251 27.90 23.35 23.26 48.70 61.99
        GradDrop, uncertainty | -0.81 | 39.18 64.87 0.5397 0.2201 26.42 21.52 26.04 52.42 65.44
        CAGrad, equal | -1.21 | 39.39 65.27 0.5578 0.2270 25.88 20.61 27.69 54.34 66.98
        CAGrad, uncertainty | 0.78 | 37.51 64.05 0.5722 0.2339 25.93 20.57 27.77 54.40 66.99
        MCLGS, equal | 1.98 | 40.98 66.43 0.5729 0.2358 27.51 22.96 23.96 49.44 62.65
        MCLGS, uncertainty | -2.12 | 40.20 65.63 0.5429 0.2174 26.03 21.11 26.68 53.32 66.26
        CAGrad, MCLGS, equal | -3.37 | 41.37 66.47 0.5513 0.2230 25.50 20.22 28.26 55.16 67.75
        CAGrad, MCLGS, uncertainty | -2.74 | 39.72 65.65 0.5470 0.2222 25.51 20.15 28.47 55.33 67.82
        """,
    ),
    Table(
        "A Table 4, BDD100K",
        DETECTION,
        "loss",
        100.0,
        "25.37 49.66",
        """
        MTL baseline | -3.33 | 26.16 51.43
        MGDA | 22.85 | 15.33 46.61
        PCGrad | -3.25 | 26.14 51.37
        GradDrop | -3.20 | 26.09 51.42
        CAGrad | -1.05 | 25.37 50.70
        MCLGS | -4.03 | 26.31 51.82
        """,
    ),
    Table(
        "B Table 1, NYUv2-13",
        SEG_AND_DEPTH,
        "absolute",
        1.0,
        "0.747 54.71",
        """
        Full task | -0.74 | 0.745 53.22
        Uncertainty | -0.30 | 0.752 54.12
        GradNorm | -0.31 | 0.753 54.09
        DWA | -0.45 | 0.745 53.80
        MGDA | -0.33 | 0.751 54.04
        CosReg | -0.35 | 0.749 54.00
        PCGrad | -0.02 | 0.744 54.66
        PCGrad + Uncertainty | 0.24 | 0.749 55.20
        STA | 0.05 | 0.735 54.80
        STA + Uncertainty | 0.21 | 0.741 55.12
        ISTA | 0.16 | 0.737 55.03
        ISTA + Uncertainty | 0.66 | 0.734 56.03
        FT+ (Table 5) | -0.51 | 0.748 53.69
        """,
    ),
    Table(
        "B Table 2, NYUv2-40",
        SEG_AND_DEPTH,
        "absolute",
        1.0,
        "0.585 43.9",
        """
        Full task | 0.25 | 0.587 44.4
        Uncertainty | 0.05 | 0.590 44.0
        GradNorm | 0.15 | 0.581 44.2
        DWA | 0.09 | 0.591 44.1
        MGDA | -0.35 | 0.576 43.2
        STA | 0.55 | 0.583 45.0
        STA + Uncertainty | 0.45 | 0.579 44.8
        ISTA | 0.90 | 0.584 45.7
        ISTA + Uncertainty | 0.70 | 0.578 45.3
        """,
    ),
    Table(
        "B Table 3, Cityscapes",
        SEG_AND_DISPARITY,
        "absolute",
        1.0,
        "3.903 63.84",
        """
        Full task | 0.51 | 3.831 64.79
        Uncertainty | 1.18 | 3.861 66.15
        GradNorm | -0.06 | 3.718 63.54
        PCGrad | 0.25 | 3.846 64.28
        DWA | 0.18 | 3.842 64.14
        MGDA | -0.05 | 5.252 65.09
        STA | 1.17 | 3.752 66.04
        STA + Uncertainty | 2.29 | 3.821 68.33
        ISTA | 1.30 | 3.720 66.26
        ISTA + Uncertainty | 2.56 | 3.790 68.84
        FT+ (Table 5) | 0.80 | 3.757 65.29
        STA + PCGrad (Table 6) | 0.86 | 3.781 65.43
        """,
    ),
    Table(
        "B Table 4, Mask R-CNN on Cityscapes",
        BOXES_AND_MASKS,
        "absolute",
        1.0,
        "36.73 62.56 41.67 65.06",
        """
        STA | 4.43 | 37.93 64.99 42.50 67.33
        ISTA | 4.87 | 37.85 65.86 42.78 68.02
        """,
    ),
    Table(
        "B Table 4, Mask R-CNN on COCO",
        BOXES_AND_MASKS,
        "absolute",
        1.0,
        "38.624 59.428 35.206 56.559",
        """
        STA | 0.72 | 39.334 60.312 35.763 57.291
        ISTA | 0.28 | 38.994 59.699 35.497 56.729
        """,
    ),
    Table(
        "D Table 1, NYUD-v2",
        PAPER_METRICS["D NYUD"],
        "gain",
        1.0,
        "33.18 0.667 20.75",
        """
        GD | 9.53 | 38.67 0.594 20.52
        MGDA | 9.21 | 38.89 0.603 20.58
        PCGrad | 9.40 | 38.61 0.596 20.50
        CAGrad | 9.84 | 38.80 0.595 20.38
        Aligned-MTL | 10.17 | 39.02 0.592 20.40
        Connection strength | 15.00 | 41.10 0.565 19.54
        Phase 1 (Table 4) | 13.44 | 40.36 0.581 19.55
        Phase 2 (Table 4) | 10.32 | 39.23 0.597 20.39
        Sequential (Table 4) | 13.79 | 40.38 0.574 19.56
        Mix (Table 4) | 15.50 | 41.10 0.565 19.54
        """,
    ),
    Table(
        "D Table 2, PASCAL-Context",
        PAPER_METRICS["D PASCAL"],
        "gain",
        1.0,
        "60.30 60.56 67.05 14.76",
        """
        GD | 1.47 | 62.17 61.15 67.99 14.70
        MGDA | 1.15 | 61.75 61.69 67.32 14.77
        PCGrad | 1.86 | 62.47 61.46 67.86 14.59
        CAGrad | 1.14 | 62.22 61.89 67.46 14.97
        Aligned-MTL | 1.83 | 62.43 62.05 67.94 14.76
        Connection strength | 3.70 | 63.86 63.05 68.30 14.33
        """,
    ),
    Table(
        # The baseline's relative error is missing in our text of the paper: the rows give 29.96.
        "D Table 3, Cityscapes",
        PAPER_METRICS["D Cityscapes"],
        "gain",
        1.0,
        "74.36 93.22 0.0128 29.96",
        """
        Cross-Stitch | -79.04 | 74.05 93.17 0.0162 116.66
        RotoGrad | -47.81 | 73.38 92.97 0.0147 82.31
        GD | -79.32 | 74.13 93.13 0.0166 116.00
        GD + Recon | -12.63 | 71.17 93.21 0.0136 43.18
        MGDA | -16.22 | 70.74 92.19 0.0130 47.09
        MGDA + Recon | -4.46 | 71.01 92.17 0.0129 33.41
        GradDrop | -80.48 | 74.08 93.08 0.0173 115.79
        GradDrop + Recon | -10.69 | 74.17 93.11 0.0134 41.37
        PCGrad | -78.39 | 73.98 93.08 0.02 114.50
        PCGrad + Recon | -14.92 | 74.18 93.14 0.0136 46.02
        CAGrad | -53.81 | 73.81 93.02 0.0153 88.29
        CAGrad + Recon | -7.38 | 74.22 93.10 0.0130 38.27
        Connection strength | -10.08 | 74.75 93.39 0.0125 41.60
        """,
    ),
)

_C_TABLE_1 = """
sum 0.383 0.519 0.518 0.647 0.490 0.617
pcgrad 0.370 0.526 0.500 0.657 0.454 0.595
gradvac 0.393 0.560 0.521 0.680 0.495 0.654
graddrop 0.399 0.541 0.533 0.666 0.505 0.634
rgw 0.358 0.513 0.490 0.644 0.462 0.614
mgda 0.371 0.531 0.452 0.594 0.430 0.564
cagrad 0.411 0.557 0.522 0.648 0.488 0.604
aligned_mtl 0.400 0.547 0.477 0.610 0.460 0.580
imtl 0.410 0.534 0.550 0.667 0.541 0.658
cosreg 0.387 0.545 0.522 0.672 0.488 0.631
uncertainty 0.206 0.349 0.345 0.507 0.319 0.482
rlw 0.360 0.504 0.499 0.649 0.466 0.614
famo 0.431 0.564 0.517 0.623 0.510 0.613
dwa 0.390 0.533 0.533 0.664 0.499 0.628
pcgrad+feature 0.365 0.522 0.504 0.656 0.468 0.613
gradvac+feature 0.338 0.516 0.463 0.628 0.425 0.585
rgw+feature 0.335 0.494 0.456 0.617 0.435 0.593
mgda+feature 0.423 0.567 0.533 0.665 0.515 0.643
cagrad+feature 0.408 0.541 0.538 0.665 0.513 0.633
aligned_mtl+feature 0.410 0.554 0.516 0.646 0.498 0.625
imtl+feature 0.380 0.526 0.504 0.656 0.497 0.651
cosreg+feature 0.387 0.532 0.530 0.674 0.492 0.629
"""
C_TABLE_1 = {
    name: tuple(map(float, values))
    for name, *values in map(str.split, _C_TABLE_1.strip().splitlines())
}
"""Methods by their ``--mtl``: mAP and mAR of boxes, visible and amodal masks."""
C_TABLE_3 = {
    "GDS": (0.643, 0.633, 0.505, 0.600, 0.567, 0.510),
    "GMS": (0.676, 0.705, 0.538, 0.595, 0.505, 0.590),
    "FD": (0.567, 0.586, 0.657, 0.657, 0.652, 0.690),
}
"""Ranking similarity of a measure with each column of Table 1."""
