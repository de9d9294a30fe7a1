"""The numbers of the paper (arXiv 2504.08949), and which data they are of. Pure.

A domain is the paper's where it has exactly as many users, items and interactions as the paper says
(Table 2). Only then do the paper's numbers stand beside those that were computed.
"""

from collections.abc import Mapping, Sequence

Counts = tuple[int, int, int]
"""Users, items and interactions."""

DATASETS: Mapping[str, Counts] = {
    "Automotive": (31_740, 17_538, 206_941),
    "Clothing": (35_869, 18_672, 234_963),
    "Electronic": (29_248, 14_450, 191_680),
    "Food": (35_744, 15_459, 243_390),
    "Home": (32_430, 17_406, 207_739),
    "Movie": (25_431, 12_588, 203_730),
    "Phone": (18_500, 6_497, 95_483),
    "Game": (4_564, 3_058, 30_302),
    "Music": (7_501, 3_547, 48_240),
    "Industry": (5_526, 2_739, 29_325),
    "Bili_Movie": (7_971, 1_390, 42_936),
    "Bili_Cartoon": (6_037, 2_115, 36_954),
}
"""Table 2."""

DOWNSTREAM = ("Game", "Music", "Industry", "Bili_Movie", "Bili_Cartoon")
TABLE_6_DATASETS = ("Game", "Music", "Industry")

Row = Mapping[str, Sequence[float]]
"""Values of a model or a column by its name, one for each data set."""

TABLE_3_HR1: Row = {
    "GRU4Rec": (0.3063, 0.3371, 0.2846, 0.2283, 0.2401),
    "SASRec": (0.3443, 0.3530, 0.3096, 0.2497, 0.2631),
    "CL4SRec": (0.3482, 0.3596, 0.3048, 0.2555, 0.2646),
    "TedRec": (0.3576, 0.3798, 0.3230, 0.2561, 0.2771),
    "LLaMA-2": (0.0741, 0.0252, 0.0460, 0.0238, 0.0209),
    "ChatRec": (0.2382, 0.1274, 0.2302, 0.0544, 0.1135),
    "MoRec": (0.3857, 0.3773, 0.3460, 0.2285, 0.2575),
    "LLaRA": (0.4411, 0.3972, 0.3577, 0.2532, 0.2816),
    "CPT-LLaRA": (0.3775, 0.2562, 0.2856, 0.0629, 0.1280),
    "CPRec": (0.4764, 0.4286, 0.3730, 0.2706, 0.3129),
}
TABLE_3_VALID_RATIO: Row = {
    "LLaMA-2": (0.4912, 0.2570, 0.3230, 0.4628, 0.4509),
    "ChatRec": (0.9327, 0.9367, 0.8189, 0.8574, 0.9289),
    "MoRec": (1.0, 1.0, 1.0, 1.0, 1.0),
    "LLaRA": (0.9851, 0.9971, 0.9860, 0.9982, 0.9988),
    "CPT-LLaRA": (0.9779, 0.8910, 0.8823, 0.8883, 0.8814),
    "CPRec": (0.9952, 0.9912, 0.9788, 0.9950, 0.9906),
}
TABLE_4_UNTUNED: Row = {"LLaRA w/o SFT": (0.0210, 0.0120, 0.0158, 0.0040, 0.0043)}
"""Of the rows of Table 4, the one that Table 3 does not have."""
TABLE_5: Mapping[str, Row] = {
    "LLaRA": {
        "Sparse": (0.4500, 0.4370, 0.3711, 0.2516, 0.2704),
        "Medium": (0.4264, 0.3612, 0.3193, 0.2576, 0.3034),
        "Dense": (0.4315, 0.2921, 0.3370, 0.2530, 0.2724),
        "All": (0.4411, 0.3972, 0.3577, 0.2532, 0.2816),
    },
    "CPRec": {
        "Sparse": (0.4849, 0.4648, 0.3853, 0.2685, 0.3022),
        "Medium": (0.4661, 0.3945, 0.3361, 0.2772, 0.3262),
        "Dense": (0.4588, 0.3354, 0.3608, 0.2657, 0.3276),
        "All": (0.4764, 0.4286, 0.3730, 0.2706, 0.3129),
    },
}
TABLE_6: Mapping[str, Row] = {
    "SASRec": {
        "HR@1": (0.3443, 0.3530, 0.3096),
        "HR@3": (0.5552, 0.5298, 0.4717),
        "HR@5": (0.6612, 0.6302, 0.5612),
        "NDCG@3": (0.4667, 0.4553, 0.4033),
        "NDCG@5": (0.5104, 0.4966, 0.4401),
    },
    # The paper's HR@1 of LLaMA-2 on Music and Industry is above its HR@3, which cannot be.
    "LLaMA-2": {
        "HR@1": (0.0758, 0.0655, 0.1082),
        "HR@3": (0.1573, 0.0265, 0.0530),
        "HR@5": (0.2314, 0.1007, 0.1587),
        "NDCG@3": (0.1227, 0.0489, 0.0847),
        "NDCG@5": (0.1529, 0.0633, 0.1052),
    },
    "ChatRec": {
        "HR@1": (0.2382, 0.1274, 0.2302),
        "HR@3": (0.4266, 0.2896, 0.3668),
        "HR@5": (0.5173, 0.4135, 0.4394),
        "NDCG@3": (0.3472, 0.2198, 0.3092),
        "NDCG@5": (0.3846, 0.2706, 0.3392),
    },
    "LLaRA": {
        "HR@1": (0.4411, 0.3972, 0.3577),
        "HR@3": (0.6460, 0.5832, 0.5315),
        "HR@5": (0.7333, 0.6753, 0.6188),
        "NDCG@3": (0.5614, 0.5055, 0.4589),
        "NDCG@5": (0.5973, 0.5434, 0.4947),
    },
    "CPRec": {
        "HR@1": (0.4764, 0.4286, 0.3730),
        "HR@3": (0.6761, 0.5843, 0.5485),
        "HR@5": (0.7422, 0.6505, 0.6350),
        "NDCG@3": (0.5937, 0.5196, 0.4753),
        "NDCG@5": (0.6210, 0.5469, 0.5108),
    },
}


def find_dataset(counts: Counts) -> str | None:
    """Returns the paper's name of a domain with these counts; None where it is not the paper's."""
    return next((name for name, known in DATASETS.items() if known == counts), None)


def find_score(artefact: str, dataset: str | None, model: str, measure: str) -> float | None:
    """Returns a score of the paper; None where it has none.

    Args:
        artefact: Name of the table, such as `table3`; the paper gives no numbers of its figures.
        dataset: The paper's name of the data.
        model: The paper's name of the model.
        measure: Name of the column.
    """
    rows: Row
    match artefact:
        case "table3" | "table4":
            rows = {
                "HR@1": {**TABLE_3_HR1, **TABLE_4_UNTUNED}.get(model, ()),
                "Valid Ratio": TABLE_3_VALID_RATIO.get(model, ()),
            }
        case "table5":
            rows = TABLE_5.get(model, {})
        case "table6":
            rows = TABLE_6.get(model, {})
        case _:
            rows = {}
    datasets = TABLE_6_DATASETS if artefact == "table6" else DOWNSTREAM
    values = dict(zip(datasets, rows.get(measure, ()), strict=False))
    return None if dataset is None else values.get(dataset)
