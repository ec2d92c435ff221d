"""The documentation says what the code does: links, commands, variables, reasons, columns, examples."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import dagster as dg
import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from uveitis_assets.components.encoder_pretraining import EncoderPretraining
from uveitis_assets.components.fundus_dataset import FundusDataset
from uveitis_assets.components.lesion_detector import LesionDetector
from uveitis_assets.components.reference_color import ReferenceColor
from uveitis_assets.detection.checkpoints.lineage import weights_lineage
from uveitis_assets.detection.configuration import (
    DetectorConfiguration,
    EvaluationConfiguration,
    InferenceConfiguration,
)
from uveitis_assets.detection.evaluation.evaluate import evaluate_detections
from uveitis_assets.detection.evaluation.report import validation_report
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.prediction_task import INDEX_SCHEMA
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.fundus.stage_schemas import STAGE_SCHEMAS
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.landing.ledger import LedgerEntry
from uveitis_assets.landing.manifest_table import EXPORTED_COLUMNS, read_manifest
from uveitis_assets.landing.quarantine import QuarantineReason
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.conftest import REPOSITORY
from uveitis_assets_tests.detection.labelled_images import labelled_image
from uveitis_assets_tests.detection.written_predictions import write_prediction

DOCS = REPOSITORY / "docs"
README = REPOSITORY / "README.md"
PAGES = sorted([README, REPOSITORY / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
NAMES = [page.relative_to(REPOSITORY).as_posix() for page in PAGES]
PROGRAMS = ("dagster", "dagster-webserver", "dagster-daemon", "uveitis-assets", "tensorboard")
# What a defs.yaml can be of, with attributes that a fragment of one may leave out.
COMPONENTS: dict[Any, dict[str, Any]] = {
    FundusDataset: {"name": "example", "folder": "example", "layout": "uwf700"},
    LesionDetector: {"name": "example", "train_on": "uwf700", "predict_on": "uwf700"},
    EncoderPretraining: {"name": "example", "learn_from": ["uwf700"]},
    ReferenceColor: {},
}
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
VARIABLE = re.compile(r"UVEITIS_[A-Z][A-Z_]*[A-Z]")


def fences(page: Path, language: str) -> list[str]:
    return [
        "\n".join(line.removeprefix(indent) for line in body.splitlines())
        for indent, found, body in FENCE.findall(page.read_text())
        if found == language
    ]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, by GitHub's rule."""
    text = FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def documented(page: Path) -> set[str]:
    """Everything that stands as code in a page's text."""
    return set(re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text())))


def code_files() -> Iterator[Path]:
    yield REPOSITORY / "Makefile"
    for folder in ("uveitis_assets", "uveitis_assets_tests", "benchmarks", "docker", ".ci"):
        for path in sorted((REPOSITORY / folder).rglob("*")):
            if path.is_file() and path.suffix in {".py", ".yaml", ".sh", ""} and path != Path(__file__):
                yield path


def command_lines() -> list[list[str]]:
    """Every line of a shell example, as words; continued lines joined."""
    lines = []
    for page in PAGES:
        for block in fences(page, "bash"):
            lines += [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


def commands_of(*programs: str) -> list[list[str]]:
    return [
        [Path(words[0]).name, *words[1:]]
        for line in command_lines()
        if Path((words := line[: line.index("|")] if "|" in line else line)[0]).name in programs
    ]


def module_commands() -> list[list[str]]:
    """Examples that run a module of the package: ``python -m uveitis_assets...``."""
    return [words for words in commands_of("python") if words[1] == "-m"]


def verbs_of(words: list[str]) -> tuple[str, ...]:
    """Program and subcommands: ``dagster asset materialize``, ``python -m uveitis_assets...``."""
    if words[0] == "python":
        return tuple(words[:3])
    depth = {"dagster": 1 if words[1] == "dev" else 2, "dagster-daemon": 1, "uveitis-assets": 1}.get(words[0], 0)
    return tuple(words[: depth + 1])


def run_here(words: tuple[str, ...]) -> None:
    """Run a console script, or ``python -m <module>``, in this process: most of them would import Dagster first."""
    if words[0] == "python":
        with mock.patch.object(sys, "argv", list(words[2:])):
            runpy.run_module(words[2], run_name="__main__")
    else:
        (program,) = entry_points(group="console_scripts", name=words[0])
        with mock.patch.object(sys, "argv", list(words)):
            program.load()()


@cache
def options_of(verbs: tuple[str, ...]) -> frozenset[str]:
    """Options that a command's own help lists."""
    shown = io.StringIO()
    readable = mock.patch.dict(os.environ, {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})
    with readable, redirect_stdout(shown), pytest.raises(SystemExit) as ended:
        run_here((*verbs, "--help"))
    assert ended.value.code in {0, None}, f"{' '.join(verbs)} --help: {shown.getvalue()[-500:]}"
    return frozenset(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", shown.getvalue()))


@cache
def loaded_definitions() -> Any:
    from uveitis_assets.definitions import defs

    return defs()


def asset_keys() -> set[str]:
    return {key.to_user_string() for key in loaded_definitions().resolve_asset_graph().get_all_asset_keys()}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_relative_link_and_picture_leads_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(REPOSITORY / target.partition("#")[0]).resolve() for target in LINK.findall(README.read_text())}
    assert set(DOCS.rglob("*.md")) <= linked


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    texts = [FENCE.sub("", page.read_text()) for page in PAGES]
    named = {name for text in texts for name in re.findall(r"`make ([a-z-]+)`", text)}
    named |= {words[1] for words in commands_of("make")}
    assert {"demo", "dev", "test", "lint", "bench"} <= named <= targets


def test_the_documented_variables_are_those_that_the_code_reads() -> None:
    in_docs = {name for page in PAGES for name in VARIABLE.findall(page.read_text())}
    in_code = {name for path in code_files() for name in VARIABLE.findall(path.read_text())}
    assert in_docs == in_code


@pytest.mark.parametrize("page", ["README.md", "docs/reference/configuration.md"])
def test_both_tables_of_variables_hold_all_that_the_package_reads(page: str) -> None:
    package = sorted((REPOSITORY / "uveitis_assets").rglob("*.py"))
    in_package = {name for path in package for name in VARIABLE.findall(path.read_text())}
    rows = re.findall(r"^\| `(\w+)` \|", (REPOSITORY / page).read_text(), re.MULTILINE)
    if page == "README.md":
        # What only a Docker deployment has stands in the reference alone.
        in_package -= set(VARIABLE.findall((REPOSITORY / "docker" / "prepare.sh").read_text()))
        in_package |= {"UVEITIS_DATA", "UVEITIS_RAW"}
    assert in_package
    assert in_package <= set(rows)


def test_every_quarantine_reason_has_a_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "reference" / "quarantine.md").read_text(), re.MULTILINE)
    assert set(get_args(QuarantineReason)) <= set(rows)


def test_every_landing_problem_has_a_row_and_every_row_a_cause() -> None:
    codes = set()
    for path in sorted((REPOSITORY / "uveitis_assets").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or len(call.args) < 2:
                continue
            function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            reason = call.args[1]
            if function in {"LandingProblem", "_note"} and isinstance(reason, ast.Constant):
                codes.add(reason.value)
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "reference" / "quarantine.md").read_text(), re.MULTILINE)
    assert codes <= set(rows) <= codes | set(get_args(QuarantineReason))


def script_of_docs(name: str) -> Any:
    """A script of the folder docs/ as a module."""
    specification = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_picture_of_the_packages_is_up_to_date() -> None:
    drawn = script_of_docs("draw_rooms").draw()
    assert (DOCS / "images" / "rooms.svg").read_text() == drawn, "run .venv/bin/python docs/draw_rooms.py"


def test_the_design_lists_the_packages_in_the_order_of_the_import_rules() -> None:
    rules = configparser.ConfigParser()
    rules.read(REPOSITORY / "importlinter.ini")
    layers = [
        # Packages in parentheses need not exist.
        sorted(name.rpartition(".")[2] for name in layer.replace(" ", "").split("|") if not name.startswith("("))
        for layer in rules["importlinter:contract:house"]["layers"].strip().split("\n")
    ]
    design = (DOCS / "explanation" / "design.md").read_text()
    table = design.partition("| package | holds |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in table.splitlines()[2:]]
    place = {name: number for number, row in enumerate(rows) for name in row}
    ordered = [place[name] for layer in layers for name in layer]
    assert len(ordered) > 10
    assert ordered == sorted(ordered)


def test_the_configuration_pages_are_up_to_date() -> None:
    pages = script_of_docs("generate_configuration").pages()
    assert len(pages) == 2
    for path, text in pages.items():
        assert path.read_text() == text, "run .venv/bin/python docs/generate_configuration.py"


def test_every_command_has_only_options_that_exist() -> None:
    commands = [*commands_of(*PROGRAMS), *module_commands()]
    assert len(commands) > 20
    assert module_commands()
    unknown = [
        f"{' '.join(verbs_of(words))}: {word}"
        for words in commands
        for word in words[len(verbs_of(words)) :]
        if re.fullmatch(r"--?[a-z][\w-]*", word) and word not in options_of(verbs_of(words))
    ]
    assert not unknown


def test_every_selected_asset_exists_in_the_shipped_lanes() -> None:
    selections = [words[words.index("--select") + 1] for words in commands_of("dagster") if "--select" in words]
    selected = {key for selection in selections for key in selection.split(",")}
    shipped = {key for key in selected if not key.startswith("clinic/")}
    assert len(shipped) >= 5
    assert shipped <= asset_keys()


def test_every_sensor_schedule_and_job_that_a_command_names_exists() -> None:
    repository = loaded_definitions().get_repository_def()
    names = {*repository.job_names}
    names |= {sensor.name for sensor in repository.sensor_defs}
    names |= {schedule.name for schedule in repository.schedule_defs}
    named = set()
    for words in commands_of("dagster"):
        if words[1] in {"sensor", "schedule"} and words[2] in {"start", "stop"}:
            named.add(words[3])
        if "--job" in words:
            named.add(words[words.index("--job") + 1])
    assert named
    assert named <= names


def test_every_example_partition_has_the_form_of_the_partitions() -> None:
    found = []
    for words in commands_of("dagster"):
        for option in ("--partition", "--partition-range"):
            if option in words:
                found += words[words.index(option) + 1].split("...")
    assert found
    assert all(re.fullmatch(r"b\d{5}|fold[0-4](\|(train|val|test))?", partition) for partition in found)


def test_every_asset_check_is_described_in_the_readme() -> None:
    graph = loaded_definitions().resolve_asset_graph()
    assert {key.name for key in graph.asset_check_keys} <= documented(README)


def check_component(component: Any, attributes: dict[str, Any], left_out: dict[str, Any]) -> None:
    """Hold attributes against the component's own model; ``left_out`` are those that a fragment need not repeat."""
    if component is FundusDataset and "image_folder" in attributes:
        left_out = {**left_out, "layout": "image_folder"}
    component.get_model_cls().model_validate({**left_out, **attributes})


def check_run_configuration(content: dict[str, Any]) -> None:
    """Hold what the launchpad takes against the ops of the shipped lanes, and overrides against their detectors."""
    dg.validate_run_config(loaded_definitions().resolve_implicit_global_asset_job_def(), content)
    assets = [asset for asset in loaded_definitions().assets if isinstance(asset, dg.AssetsDefinition)]
    for op, options in content["ops"].items():
        # Dagster passes over ops that the job does not have.
        specifications = [specification for asset in assets if asset.op.name == op for specification in asset.specs]
        assert specifications, f"expected an op of the shipped lanes, found {op}"
        if "overrides" in options["config"]:
            configured = specifications[0].metadata["configuration"].value
            DetectorLaneConfiguration.model_validate(configured).overridden(options["config"]["overrides"])


def yaml_problem(text: str) -> str | None:
    """What is wrong with an example: a whole defs.yaml, some attributes of one, or a run's configuration."""
    content = yaml.safe_load(text)
    try:
        if "type" in content:
            (component,) = [c for c in COMPONENTS if content["type"] == f"{c.__module__}.{c.__name__}"]
            check_component(component, content["attributes"], {})
        elif "ops" in content:
            check_run_configuration(content)
        elif "run_launcher" in content:
            return None  # an instance's settings: the tests of the launcher load them
        else:
            # A fragment is of the components that have all of its fields.
            fitting = [c for c in COMPONENTS if set(content) <= set(c.get_model_cls().model_fields)]
            assert fitting, f"expected fields of one component, found {sorted(content)}"
            problems = []
            for component in fitting:
                try:
                    check_component(component, content, COMPONENTS[component])
                except ValidationError as error:
                    problems.append(f"{component.__name__}: {error}")
            return "\n".join(problems) if len(problems) == len(fitting) else None
    except (ValidationError, ValueError, AssertionError, dg.DagsterInvalidConfigError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_yaml_example_is_valid_for_its_component_or_run(page: Path) -> None:
    problems = [problem for text in fences(page, "yaml") if (problem := yaml_problem(text)) is not None]
    assert not problems


@pytest.mark.parametrize(
    "wrong",
    [
        "type: uveitis_assets.components.lesion_detector.LesionDetector\nattributes: {name: a, train_on: uwf700}",
        "type: uveitis_assets.components.lesion_detector.Detector\nattributes: {}",
        "roi: {method: magic}",
        "training: {epoch: 3}",
        "model: {head: oriented}\nroi: {method: uwf}",
        "ops: {overfit_10__checkpoint: {config: {devices: cpu}}}",
        "ops: {overfit_11__checkpoint: {config: {device: cpu}}}",
        "ops: {overfit_10__checkpoint: {config: {overrides: {training: {epoch: 3}}}}}",
    ],
)
def test_a_wrong_yaml_example_would_be_noticed(wrong: str) -> None:
    assert yaml_problem(wrong)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_json_and_python_example_can_be_read(page: Path) -> None:
    for text in fences(page, "json"):
        json.loads(text)
    for text in fences(page, "python"):
        compile(text, str(page), "exec")


def test_the_shown_validation_error_names_the_model_that_is_validated() -> None:
    shown = re.findall(r"validation error for (\w+)", (DOCS / "how-to" / "add-a-dataset.md").read_text())
    assert shown == [FundusDataset.get_model_cls().__name__]


def test_the_formula_of_the_formats_page_leads_back_to_raw_pixels() -> None:
    (function,) = [text for text in fences(DOCS / "reference" / "formats.md", "python") if "global_to_raw" in text]
    scope: dict[str, Any] = {}
    exec(function, scope)
    frames = ImageFrames((3900, 3072), (101, 7, 3650, 2998), 1024, (0, 279), 3549, "global", ())
    raw = np.array([1234.5, 678.25])
    x, y = frames.raw_to_global.apply(raw)
    found = scope["global_to_raw"](x, y, frames.crop_metadata(), frames.tiles_metadata("uwf700::a"))
    assert found == pytest.approx(tuple(raw), abs=1e-9)


def test_the_formats_page_names_every_column_of_manifest_indexes_and_ledger(store: ArtefactStore) -> None:
    named = documented(DOCS / "reference" / "formats.md")
    columns = {*EXPORTED_COLUMNS, *read_manifest(store, "none").columns}
    columns |= {name for schema in STAGE_SCHEMAS.values() for name in schema}
    columns |= set(LedgerEntry.__slots__) | set(INDEX_SCHEMA)
    assert columns <= named


def test_the_formats_page_names_every_key_of_reports_and_lineages() -> None:
    named = {part for name in documented(DOCS / "reference" / "formats.md") for part in (name, name.partition(".")[0])}
    image = labelled_image("one", [[5]])
    found = Detections(image.truth.boxes, np.ones(1, np.float32), image.truth.labels)
    evaluation = evaluate_detections([image], [found], {5: "hemorragie"}, EvaluationConfiguration(bootstrap_samples=0))
    report = validation_report(evaluation, best_epoch=1, fingerprint="")
    keys = set(report) | {key for name in ("ap", "ap_small", "froc", "confusion") for key in report[name]}
    keys |= {f"val_metrics.{key}" for key in report["val_metrics"]} | set(report["val_metrics"]["per_class"]["5"])
    lineage = weights_lineage(
        DetectorConfiguration(),
        categories={},
        data_fingerprint="",
        metrics={},
        parent=None,
        learned_images=[],
        created_at="",
        tiles={},
        mixed_precision=False,
    )
    assert keys | set(lineage) <= named


def test_the_prediction_example_has_the_keys_that_are_written_and_agrees_with_itself(store: ArtefactStore) -> None:
    texts = fences(DOCS / "reference" / "formats.md", "json")
    (example,) = [content for content in map(json.loads, texts) if "predictions" in content]
    frames = ImageFrames((3900, 3072), (101, 7, 3650, 2998), 1024, (0, 279), 3549, "global", ())
    detections = Detections(np.array([[1, 2, 3, 4]], np.float32), np.ones(1, np.float32), np.array([5]))
    path = write_prediction(
        store,
        example["experiment"],
        example["image_id"],
        frames,
        detections,
        checkpoints=["0"],
        configuration=InferenceConfiguration(),
        fingerprint="0",
    )
    written = json.loads(path.read_text())
    assert list(example) == list(written)
    (lesion,) = example["predictions"]
    assert list(lesion) == list(written["predictions"][0])
    assert list(example["merge"]) == list(written["merge"])
    to_global = example["source_to_global"]
    source = np.array(lesion["box_source"])
    assert source * to_global["scale"] + np.tile(to_global["offset"], 2) == pytest.approx(lesion["box"], abs=0.02)
    assert lesion["polygon_source"][0] == lesion["box_source"][:2]
    assert lesion["polygon_source"][2] == lesion["box_source"][2:]


def test_the_formats_page_lists_the_categories_with_their_ids() -> None:
    text = (DOCS / "reference" / "formats.md").read_text()
    listed = {int(number): name for number, name in re.findall(r"\| (\d+) \| `(\w+)`", text)}
    assert listed == load_class_map().names


def test_no_page_names_a_path_of_one_machine() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(work|home|root|tmp)/", page.read_text()), page


def test_every_docstring_begins_with_a_line_of_at_most_a_hundred_characters() -> None:
    documented_nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    offenders, n_docstrings = [], 0
    for path in sorted((REPOSITORY / "uveitis_assets").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            docstring = ast.get_docstring(node) if isinstance(node, documented_nodes) else None
            if docstring is None:
                continue
            n_docstrings += 1
            first, _, rest = docstring.partition("\n")
            # The sentence ends on its line, and a blank line separates it from what follows.
            if len(first) > 100 or not first.endswith(".") or (rest and not rest.startswith("\n")):
                offenders.append(f"{path.relative_to(REPOSITORY)}: {getattr(node, 'name', 'module')}: {first}")
    assert not offenders, "\n".join(offenders)
    assert n_docstrings > 1000
