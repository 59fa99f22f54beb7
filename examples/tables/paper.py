"""The paper's own rows, to stand beside ours: (header, rows) by table. Its models are of 7 and 13
billion parameters and its questions others, so these are no marks to reach, only to compare with.

Cloud-Device Collaborative Learning for Multimodal Large Language Models (CVPR 2024), tables 1 to 4.
"""

_ROUNDS = [f"{metric} r{number}" for number in (1, 2, 3) for metric in ("MC", "DA")]

PAPER: dict[str, tuple[list[str], list[list[str]]]] = {
    "methods": (
        ["", *_ROUNDS, "mean MC", "mean DA"],
        [
            ["source only", *["47.95", "45.55"] * 4],
            ["TENT", "47.42", "45.17", "48.12", "45.52", "47.34", "44.86", "47.63", "45.18"],
            ["CoTTA", "47.77", "45.02", "47.77", "45.30", "48.30", "45.02", "47.95", "45.11"],
            ["PKD", "48.21", "45.05", "48.73", "45.24", "47.77", "45.24", "48.23", "45.18"],
            ["CWD", "48.03", "44.78", "48.21", "44.65", "48.47", "44.93", "48.24", "44.79"],
            ["CD-CCA", "50.65", "48.80", "51.79", "48.37", "53.19", "49.05", "51.88", "48.74"],
        ],
    ),
    "captions": (
        ["", "all", "in", "near", "out"],
        [
            ["source only", "36.82 / 75.53", "", "", ""],
            ["TENT", "36.60 / 73.00", "", "", ""],
            ["CoTTA", "36.74 / 74.86", "", "", ""],
            ["PKD", "36.67 / 75.63", "", "", ""],
            ["CWD", "36.18 / 75.15", "", "", ""],
            ["CD-CCA", "38.35 / 77.73", "41.34 / 74.47", "40.67 / 77.78", "33.04 / 80.93"],
        ],
    ),
    "ablation": (
        ["", "MC", "DA"],
        [
            ["PL", "", "+3.34"],
            ["+ AKD", "+2.44", "+3.50"],
            ["+ UTS-1", "+2.87", "+3.38"],
            ["+ UTS-2", "+5.24", "+3.50"],
        ],
    ),
    "tokens": (
        ["tokens kept", "25%", "50%", "75%"],
        [["random", "50.74", "50.13", "50.91"], ["UTS", "52.49", "53.19", "53.19"]],
    ),
}
