"""The tables as data: every value is used once, and every row is measurable or explained."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from ovss_refine.evaluation import ROWS
from ovss_refine.evaluation.dataset import list_datasets, load_dataset
from ovss_refine.reproduce import TABLES, tables
from ovss_refine.reproduce.tables import COMMON, load_tables, published, rows_of, variant_config

SHARED = Path(__file__).parents[3] / "shared"
CSV = Path(tables.__file__).with_name("paper_tables.csv")
DOCS = Path(__file__).parents[2] / "docs"


def spec(name):
    path = SHARED / "spec" / name
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return path


def test_the_values_equal_the_given_file():
    assert CSV.read_bytes() == spec("paper_tables.csv").read_bytes()


def test_every_published_row_is_used_once():
    with CSV.open(newline="") as file:
        wanted = Counter((r["table"], r["backbone"], r["method"]) for r in csv.DictReader(file))
    rows = [row for table in load_tables().tables.values() for row in table.rows]
    used = Counter((r.published, r.backbone, r.method) for r in rows if r.published)
    assert used == wanted
    assert set(used.values()) == {1}
    assert len(used) == 77


def test_every_published_number_has_a_column():
    numbers = published()
    assert len(numbers) == 493
    assert numbers["1", "ViT-L/14", "Ours M.V.", "coco-object"] == 42.9
    assert ("1", "ViT-B/16", "FreeDA", "voc21") not in numbers
    of = {row.published: table for table in load_tables().tables.values() for row in table.rows}
    for table, _, _, dataset in numbers:
        assert dataset in of[table].datasets
    for table in load_tables().tables.values():
        assert set(table.datasets) <= set(list_datasets())
        shown = {key[3] for key in numbers if of[key[0]] is table}
        assert shown in (set(), set(table.datasets))  # no column without any number


def test_rows_that_cannot_be_measured_have_a_reason():
    lacking = {}
    for name, table in load_tables().tables.items():
        for row in table.rows:
            assert bool(row.missing) != bool(row.logits)
            if row.missing:
                assert row.missing in load_tables().reasons
                assert row.published
                lacking.setdefault((name, row.missing), set()).add(row.method)
    assert lacking == {
        ("main", "no licence"): {"FreeDA", "ReCo", "PnP-OVSS"},
        ("main", "no scores"): {"CaR"},
        ("main", "needs masks"): {"LaVG"},
        ("attention-weights", "not specified"): {"I", "II", "III", "IV", "V"},
    }


def test_naclip_is_measured_without_pamr(tmp_path):
    """Its authors' values are with PAMR, 64.1 on VOC21; the paper's is 58.9."""
    pytest.importorskip("torch")
    from ovss_refine.evaluation.published import Published
    from ovss_refine.evaluation.request import Chosen, EvaluateRequest
    from ovss_refine.evaluation.run import baseline_of

    numbers = published()
    assert numbers["1", "ViT-B/16", "NACLIP", "voc21"] == 58.9
    every = [(table, row) for table in load_tables().tables.values() for row in table.rows]
    rows = [(table, row) for table, row in every if row.logits == "naclip"]
    assert {row.backbone for _, row in rows if row.published} == {"ViT-B/16", "ViT-L/14"}
    for table, row in rows:
        for name in table.datasets:
            chosen = Chosen("naclip", row.logits_options)
            dataset = load_dataset(name)
            asked = EvaluateRequest(dataset=dataset, root=tmp_path, logits=chosen, attention=chosen)
            assert baseline_of(asked, dataset.published("naclip")).pamr_iterations == 10
            given = Published.of(dataset.method("naclip") | row.logits_options)
            assert baseline_of(asked, given).pamr_iterations == 0


WITHOUT_THRESHOLD = ("clip", "maskclip", "gem", "clip-surgery", "cliptrase")


def test_unpublished_decisions_have_a_note():
    shown = [
        row
        for name in ("main", "components", "cost")
        for row in load_tables().tables[name].rows
        if row.logits in WITHOUT_THRESHOLD and (row.published or row.cost)
    ]
    assert len(shown) == (4 + 4 + 1) + 1 + 1
    for row in shown:
        assert "background threshold" in row.note
        for name in list_datasets()[:-1]:
            settings = load_dataset(name).method(row.logits)
            assert "probability_threshold" not in settings  # otherwise the note is wrong


def test_names_and_order_are_those_of_the_command_line():
    assert tuple(load_tables().tables) == TABLES
    assert set(COMMON) == set(ROWS) - {"refined", "paper"}  # both of which the variants are


def test_every_row_shows_what_its_evaluation_measures():
    for name, table in load_tables().tables.items():
        for row in (row for row in table.rows if not row.missing):
            measured = set(rows_of(row))
            if row.attention:
                measured |= set(load_tables().variants[row.measured])
            assert row.show in measured, (name, row.method)
            assert set(load_tables().needs(row)) <= set(load_tables().weights)
    for members in load_tables().variants.values():
        for options in members.values():
            variant_config(options)  # raises on an unknown option
            assert not set(members) & set(ROWS)


def test_rows_have_the_sources_and_modes_of_their_names():
    shows = {"O.P.": "optimal_path", "M.V.": "maximum_velocity"}
    refined = 0
    for name in ("main", "components", "attention-weights", "logits", "sources", "versatility"):
        for row in load_tables().tables[name].rows:
            for mode, show in shows.items():
                if mode in f"{row.published} {row.method}" and not row.missing:
                    assert row.show == show or row.show in COMMON
                    refined += row.show == show
    assert refined == 4 + 2 + 14 + 6 + 5 + 24
    for table in ("main", "versatility"):
        for row in load_tables().tables[table].rows:
            if row.published and not row.missing:
                name = row.method.partition(" +")[0].lower()
                name = {"clipsurgery": "clip-surgery"}.get(name, name)
                assert row.logits == ("kk-mean" if name.startswith("ours") else name)
                assert bool(row.attention) == (row.show != "baseline")
    blocks = {
        tuple(row.attention_options.get("block_weights", ()))
        for row in load_tables().tables["attention-weights"].rows
    }
    five = ("down_0", "down_1", "up_0", "up_1", "up_2")
    assert blocks == {(), five, *((name,) for name in five)}
    logits = {
        row.method: row.logits for row in load_tables().tables["logits"].rows if row.published
    }
    assert logits == {"origin": "clip", "q-q mean": "qq-mean", "k-k mean": "kk-mean"}
    attention = {
        row.method: row.attention for row in load_tables().tables["sources"].rows if row.published
    }
    assert attention == {
        "CLIP-B/16": "clip-b16",
        "DINO-B/8": "dino-b8",
        "DINOv2-B/14": "dinov2-b14",
        "DINOv2-B/14 registers": "dinov2-b14-reg",
        "SD2": "sd2",
    }
    assert [row.show for row in load_tables().tables["components"].rows if row.published] == [
        *("baseline", "kl_every_patch", "kl_bilinear", "kl", "optimal_path"),
        *("maximum_velocity", "fusion"),
    ]


@pytest.mark.parametrize("name", TABLES)
def test_the_controls_are_in_every_table(name):
    table = load_tables().tables[name]
    for row in (row for row in table.rows if not row.missing):
        for show in rows_of(row):
            alike = "of_logits" if show in COMMON[:2] else "pair"
            fit = [other for other in table.rows if not other.missing and other.show == show]
            assert getattr(row, alike) in {getattr(other, alike) for other in fit}


def test_sweeps_pass_through_the_defaults_and_share_their_evaluation():
    main = {row.pair for row in load_tables().tables["main"].rows if row.measured == "paper"}
    for name, default in (("timestep", 0), ("timestep", 1), ("resolution", 512)):
        points = [row for row in load_tables().tables[name].rows if row.x == default]
        assert any(row.pair in main for row in points)
    tau = {row.show: row.x for row in load_tables().tables["tau"].rows if row.method == "M.V."}
    for show, x in tau.items():
        assert variant_config(load_tables().variants["tau"][show]).tau == x
    assert {row.method for row in load_tables().tables["nms"].rows} == {
        *("O.P., relative", "O.P., absolute", "M.V., relative", "M.V., absolute"),
        *("not refined", "upsampling alone", "propagation", "anchored"),
    }


def test_costs_are_those_of_the_notes():
    lines = spec("paper_cost.md").read_text().splitlines()
    noted = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    wanted = {row[0]: [float(cell) for cell in row[1:]] for row in noted[2:]}
    got, parts = {}, {}
    for row in load_tables().tables["cost"].rows:
        if row.cost:
            names = ("gflops", "parameters", "seconds", "miou")
            got[row.method] = [row.cost[name] for name in names]
            parts[row.method] = [row.cost[name] for name in row.cost if name not in names]
    assert got == wanted
    noted_parts = re.search(
        r"logits (.*), attention (.*), distribution (.*), JBU (.*)\.$", "\n".join(lines), re.M
    )
    pairs = [[float(x) for x in group.split(" / ")] for group in noted_parts.groups()]
    assert [parts["Ours O.P."], parts["Ours M.V."]] == [list(x) for x in zip(*pairs, strict=True)]


def test_the_guide_shows_the_published_tables():
    """Written by `ovss-refine reproduce all --published`, see the guide."""
    from ovss_refine.reproduce.layout import published_text

    text = published_text(list(load_tables().tables.values()))
    guide = (DOCS / "reproduce.md").read_text()
    assert guide.endswith(f"\n{text}\n")
    assert guide.count("## The published tables") == 1
    # All published rows except 5 methods and 10 strategies that are unavailable; and 5 costs.
    assert text.count("not measured here") == 77 - 5 - 10 + 5


def test_the_tables_agree_with_the_adapters():
    """Facts about weights are in the tables and in the adapters."""
    for name in ("open_clip", "timm"):
        pytest.importorskip(name, reason="the adapters need the models")
    import open_clip

    from ovss_refine_adapters.about import ABOUT
    from ovss_refine_adapters.logits.rf_clip import SINK_CHANNELS

    presets = {"ViT-B/16": "B/16", "ViT-L/14": "L/14"}
    rows = [row for row in load_tables().tables["versatility"].rows if row.logits == "rf-clip"]
    assert {row.backbone for row in rows} == set(presets)
    for row in rows:
        channels = tuple(row.logits_options["sink_channels"])
        assert channels == SINK_CHANNELS[presets[row.backbone]]
    given = {name for models in load_tables().models.values() for name in models.values()}
    own = given - set(ABOUT["attention"])
    assert own == {"clip-b16-laion2b", "clip-dinoiser", "groupvit", "talk2dino", "tcl"}
    laion = open_clip.get_pretrained_cfg("ViT-B-16", "laion2b_s34b_b88k")["hf_hub"]
    assert load_tables().weights["clip-b16-laion2b"].repository == laion.rstrip("/")
    assert load_tables().weights["groupvit"].repository == ABOUT["logits"]["groupvit"]["weights"]
    for name, weights in load_tables().weights.items():
        if name in own:
            assert weights.get
            continue
        about = ABOUT["attention"][name]
        assert about["download"] == weights.size
        if weights.preset is None:
            assert about["weights"] == weights.repository
        else:
            model = f"ViT-{weights.preset.replace('/', '-')}-quickgelu"
            known = open_clip.get_pretrained_cfg(model, "openai")["hf_hub"]
            assert known.rstrip("/") == weights.repository
    for name, second in load_tables().second_model.items():
        assert "dino" in ABOUT["logits"][name]["weights"]
        assert second == "dino-b8"
