"""The SAM 2 ROI method: strict loading, prompts, batches, mask choice and cleaning, and Hydra left alone.

No official weights are needed: a small model of sam2's own classes with seeded random weights is written in the
official checkpoint format. Its masks mean nothing; that they are the ones sam2's own predictor gives is what counts.
"""

from __future__ import annotations

import logging
import math
import pickle
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from uveitis_assets.fundus.configuration import Sam2Configuration
from uveitis_assets.fundus.roi import sam2 as roi_sam2
from uveitis_assets.fundus.roi.sam2 import Sam2Segmenter, load_sam2_segmenter
from uveitis_assets.fundus.roi.sam2_mask_choice import choose_mask, clean_mask, mask_choice_score
from uveitis_assets.fundus.roi.sam2_model import Sam2UnavailableError, checked_model_node, model_cfg_path
from uveitis_assets_tests.patience import patience

IMAGE_SIDE = 128
FEATURE_SIZES = [(32, 32), (16, 16), (8, 8)]

# Same form as the files of the sam2 package, with a model of 1.3 M parameters at 128 px.
SMALL_MODEL = f"""
# @package _global_
model:
  _target_: sam2.modeling.sam2_base.SAM2Base
  image_encoder:
    _target_: sam2.modeling.backbones.image_encoder.ImageEncoder
    scalp: 1
    trunk:
      _target_: sam2.modeling.backbones.hieradet.Hiera
      embed_dim: 16
      num_heads: 1
      stages: [1, 1, 2, 1]
      global_att_blocks: [3]
      window_pos_embed_bkg_spatial_size: [7, 7]
    neck:
      _target_: sam2.modeling.backbones.image_encoder.FpnNeck
      position_encoding:
        _target_: sam2.modeling.position_encoding.PositionEmbeddingSine
        num_pos_feats: 64
        normalize: true
        scale: null
        temperature: 10000
      d_model: 64
      backbone_channel_list: [128, 64, 32, 16]
      fpn_top_down_levels: [2, 3]
      fpn_interp_model: nearest
  memory_attention:
    _target_: sam2.modeling.memory_attention.MemoryAttention
    d_model: 64
    pos_enc_at_input: true
    layer:
      _target_: sam2.modeling.memory_attention.MemoryAttentionLayer
      activation: relu
      dim_feedforward: 64
      dropout: 0.1
      pos_enc_at_attn: false
      self_attention:
        _target_: sam2.modeling.sam.transformer.RoPEAttention
        feat_sizes: [8, 8]
        embedding_dim: 64
        num_heads: 1
      d_model: 64
      pos_enc_at_cross_attn_keys: true
      pos_enc_at_cross_attn_queries: false
      cross_attention:
        _target_: sam2.modeling.sam.transformer.RoPEAttention
        feat_sizes: [8, 8]
        embedding_dim: 64
        num_heads: 1
        kv_in_dim: 32
    num_layers: 1
  memory_encoder:
    _target_: sam2.modeling.memory_encoder.MemoryEncoder
    in_dim: 64
    out_dim: 32
    position_encoding:
      _target_: sam2.modeling.position_encoding.PositionEmbeddingSine
      num_pos_feats: 32
    mask_downsampler:
      _target_: sam2.modeling.memory_encoder.MaskDownSampler
      embed_dim: 64
      kernel_size: 3
      stride: 2
      padding: 1
    fuser:
      _target_: sam2.modeling.memory_encoder.Fuser
      layer:
        _target_: sam2.modeling.memory_encoder.CXBlock
        dim: 64
      num_layers: 1
  image_size: {IMAGE_SIDE}
  directly_add_no_mem_embed: true
  no_obj_embed_spatial: true
  use_high_res_features_in_sam: true
  multimask_output_in_sam: true
  iou_prediction_use_sigmoid: true
  use_obj_ptrs_in_encoder: true
  pred_obj_scores: true
  pred_obj_scores_mlp: true
  fixed_no_obj_ptr: true
  use_mlp_for_obj_ptr_proj: true
"""

# Asymmetric on purpose: swapped axes or mirrored points would show.
POINTS = ((0.10, 0.30, 1), (0.55, 0.90, 1), (0.97, 0.02, 0))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two OpenMP threads that wait for each other on a busy machine take twenty times as long for a model so small."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def model_cfg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sam2") / "small.yaml"
    path.write_text(SMALL_MODEL)
    return path


@pytest.fixture(scope="module")
def state(model_cfg: Path) -> dict[str, torch.Tensor]:
    """Seeded random weights of the small model, built by sam2 and Hydra themselves."""
    import sam2.build_sam
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.utils import instantiate

    backup = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(model_cfg.parent), version_base="1.2"), torch.random.fork_rng():
        torch.manual_seed(7)
        model = instantiate(compose(model_cfg.name).model, _recursive_=True)
        # Freshly initialised position embeddings and biases are zero; the comparison is stricter when nothing is.
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    GlobalHydra.instance().hydra = backup
    assert sam2.build_sam is not None
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def checkpoint(model_cfg: Path, state: dict[str, torch.Tensor]) -> Path:
    path = model_cfg.parent / "small.pt"
    torch.save({"model": state}, path)
    return path


@pytest.fixture
def configuration(model_cfg: Path) -> Sam2Configuration:
    return Sam2Configuration(model_cfg=str(model_cfg), device="cpu", points_norm=POINTS)


@pytest.fixture
def segmenter(configuration: Sam2Configuration, checkpoint: Path) -> Sam2Segmenter:
    return load_sam2_segmenter(configuration, checkpoint)


@pytest.fixture
def images() -> list[NDArray[np.uint8]]:
    """Smooth random RGB images of different sizes."""
    generator = np.random.default_rng(3)
    return [
        cv2.resize(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8), size, interpolation=cv2.INTER_CUBIC)
        for size in ((160, 96), (64, 120), (128, 128), (200, 40), (97, 101))
    ]


def model_of(segmenter: Sam2Segmenter) -> Any:
    return segmenter.model


def decoder_logits(segmenter: Sam2Segmenter, images: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
    """Low-resolution logits of each image, caught where the mask decoder returns them."""
    caught: list[NDArray[np.float32]] = []
    decoder = model_of(segmenter).sam_mask_decoder
    handle = decoder.register_forward_hook(lambda _module, _arguments, output: caught.extend(output[0].numpy()))
    try:
        segmenter.segment(images)
    finally:
        handle.remove()
    return caught


def rewrite(path: Path, change: Callable[[dict[str, Any]], None], state: dict[str, torch.Tensor]) -> Path:
    changed = dict(state)
    change(changed)
    torch.save({"model": changed}, path)
    return path


def run_python(program: str) -> str:
    completed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=patience(120),
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip()


# Loading ------------------------------------------------------------------------------------------------------


def test_a_matching_checkpoint_loads_completely_and_is_reported(
    configuration: Sam2Configuration,
    checkpoint: Path,
    state: dict[str, torch.Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger=roi_sam2.__name__):
        segmenter = load_sam2_segmenter(configuration, checkpoint)

    assert segmenter.report.complete
    assert segmenter.report.matched == tuple(sorted(state))
    assert segmenter.report.checkpoint == checkpoint
    assert (segmenter.device, segmenter.precision) == ("cpu", "float32")
    for key, value in model_of(segmenter).state_dict().items():
        assert torch.equal(value, state[key]), key
    assert not model_of(segmenter).training
    assert f"{len(state)} matched, 0 missing, 0 unexpected, 0 of another shape" in caplog.text
    assert str(checkpoint) in caplog.text


def test_missing_keys_are_refused_counted_and_named(
    configuration: Sam2Configuration, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    removed = sorted(key for key in state if key.startswith("sam_mask_decoder."))

    def remove(changed: dict[str, Any]) -> None:
        for key in removed:
            del changed[key]

    path = rewrite(tmp_path / "part.pt", remove, state)
    with pytest.raises(Sam2UnavailableError) as caught:
        load_sam2_segmenter(configuration, path)
    message = str(caught.value)
    assert str(path) in message
    assert f"{len(state) - len(removed)} matched" in message
    assert f"{len(removed)} missing ({', '.join(removed[:5])} and {len(removed) - 5} more)" in message
    assert "roi.sam2.model_cfg" in message


def test_unexpected_keys_are_refused_and_named(
    configuration: Sam2Configuration, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = rewrite(tmp_path / "more.pt", lambda changed: changed.update({"head.weight": torch.ones(2)}), state)
    with pytest.raises(Sam2UnavailableError, match=r"0 missing, 1 unexpected \(head\.weight\)"):
        load_sam2_segmenter(configuration, path)


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(
    configuration: Sam2Configuration, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = rewrite(tmp_path / "shape.pt", lambda changed: changed.update({"no_mem_embed": torch.ones(1, 1, 3)}), state)
    with pytest.raises(
        Sam2UnavailableError, match=r"1 of another shape \(no_mem_embed \(expected \(1, 1, 64\), found \(1, 1, 3\)\)\)"
    ):
        load_sam2_segmenter(configuration, path)


def test_a_checkpoint_of_another_form_is_refused(
    configuration: Sam2Configuration, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "other.pt"
    for content, found in (
        (dict(list(state.items())[:2]), "root keys"),
        ([1, 2], "list"),
        ({"model": [1]}, r"root keys \[model\]"),
        ({"model": {"no_mem_embed": 3}}, "int at model"),
    ):
        torch.save(content, path)
        with pytest.raises(Sam2UnavailableError, match=rf"other\.pt: expected the official form .* found {found}"):
            load_sam2_segmenter(configuration, path)


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.__dict__["target"]),))


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(
    configuration: Sam2Configuration, tmp_path: Path, as_zip: bool
) -> None:
    harmful = RunsCode()
    harmful.__dict__["target"] = str(tmp_path / "ran")
    path = tmp_path / "harmful.pt"
    if as_zip:
        torch.save({"model": {"weight": harmful}}, path)
    else:
        path.write_bytes(pickle.dumps({"model": {"weight": harmful}}, protocol=2))
    with pytest.raises(Sam2UnavailableError, match=r"harmful\.pt: .*tensors only"):
        load_sam2_segmenter(configuration, path)
    assert not (tmp_path / "ran").exists()


def test_an_absent_file_or_a_folder_is_named(configuration: Sam2Configuration, tmp_path: Path) -> None:
    with pytest.raises(Sam2UnavailableError, match=r"absent\.pt: expected .* found no file; download"):
        load_sam2_segmenter(configuration, tmp_path / "absent.pt")
    with pytest.raises(Sam2UnavailableError, match="found a folder"):
        load_sam2_segmenter(configuration, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_file_is_refused_with_its_size(
    configuration: Sam2Configuration, checkpoint: Path, tmp_path: Path, damage: str
) -> None:
    content = checkpoint.read_bytes()
    path = tmp_path / "damaged.pt"
    path.write_bytes({"cut": content[: len(content) // 2], "text": b"<html>not found</html>", "empty": b""}[damage])
    size = path.stat().st_size
    with pytest.raises(Sam2UnavailableError, match=rf"damaged\.pt: .* found {size} bytes .* download it again"):
        load_sam2_segmenter(configuration, path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_cuda_without_a_gpu_is_refused(configuration: Sam2Configuration, checkpoint: Path) -> None:
    with pytest.raises(Sam2UnavailableError, match=r"expected a CUDA device, found none .* auto or cpu"):
        load_sam2_segmenter(configuration.model_copy(update={"device": "cuda"}), checkpoint)


def test_auto_takes_the_device_that_is_there(configuration: Sam2Configuration, checkpoint: Path) -> None:
    segmenter = load_sam2_segmenter(configuration.model_copy(update={"device": "auto"}), checkpoint)
    assert segmenter.device == ("cuda" if torch.cuda.is_available() else "cpu")


def test_an_unknown_model_configuration_lists_those_of_the_package(checkpoint: Path) -> None:
    with pytest.raises(Sam2UnavailableError, match=r"configs/sam2\.1/sam2\.1_hiera_b\+\.yaml"):
        load_sam2_segmenter(Sam2Configuration(model_cfg="configs/sam2.1/absent.yaml", device="cpu"), checkpoint)
    with pytest.raises(Sam2UnavailableError, match="expected a path below"):
        load_sam2_segmenter(Sam2Configuration(model_cfg="../torch/version.yaml", device="cpu"), checkpoint)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("sam2.modeling.backbones.hieradet.Hiera", "subprocess.Popen"), "trunk._target_: expected a class of sam2"),
        (("sam2.modeling.backbones.hieradet.Hiera", "sam2.build_sam.os.system"), "trunk._target_: expected a class"),
        (("num_heads: 1\n      stages", "weights_path: a.pt\n      stages"), "weights_path: expected all weights"),
        (("model:\n  _target_", "defaults: [x]\nmodel:\n  _target_"), "defaults list"),
        (("model:\n  _target_", "net:\n  _target_"), "expected a mapping with the key `model`"),
        (("sam2.modeling.sam2_base.SAM2Base", "sam2.modeling.memory_encoder.Fuser"), "expected sam2.modeling.sam2_ba"),
        (("scalp: 1", "scalp: [1"), "expected a model configuration in YAML"),
        (("scalp: 1", "scalps: 1"), "sam2 cannot build this model"),
    ],
)
def test_a_model_configuration_may_only_build_sam2_classes(
    changed: tuple[str, str], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "changed.yaml"
    assert changed[0] in SMALL_MODEL
    path.write_text(SMALL_MODEL.replace(*changed))
    with pytest.raises(Sam2UnavailableError, match=message) as caught:
        load_sam2_segmenter(Sam2Configuration(model_cfg=str(path), device="cpu"), checkpoint)
    assert "changed.yaml" in str(caught.value)


def test_shipped_configurations_are_read_as_hydra_composes_them() -> None:
    import sam2
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    package = Path(sam2.__path__[0])
    names = [f"configs/{v}/{v}_hiera_{size}.yaml" for v in ("sam2", "sam2.1") for size in ("t", "s", "b+", "l")]
    GlobalHydra.instance().clear()
    with initialize_config_module("sam2", version_base="1.2"):
        for name in names:
            composed = OmegaConf.to_container(compose(name), resolve=True)
            read = OmegaConf.to_container(OmegaConf.load(model_cfg_path(name, package)), resolve=True)
            assert read == composed
            assert checked_model_node(Path(name), read) == composed["model"]
    GlobalHydra.instance().clear()


def test_a_configuration_of_the_package_builds_the_model_that_sam2_builds(tmp_path: Path) -> None:
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from sam2.build_sam import build_sam2

    name = "configs/sam2.1/sam2.1_hiera_t.yaml"
    GlobalHydra.instance().clear()
    with initialize_config_module("sam2", version_base="1.2"), torch.random.fork_rng():
        torch.manual_seed(1)
        official = build_sam2(name, None, device="cpu", apply_postprocessing=True)
    GlobalHydra.instance().clear()
    path = tmp_path / "tiny.pt"
    torch.save({"model": official.state_dict()}, path)

    model = model_of(load_sam2_segmenter(Sam2Configuration(model_cfg=name, device="cpu"), path))

    assert str(model) == str(official)
    assert model.image_size == 1024
    for setting in ("via_stability", "stability_delta", "stability_thresh"):
        key = f"dynamic_multimask_{setting}"
        assert getattr(model.sam_mask_decoder, key) == getattr(official.sam_mask_decoder, key)


def test_postprocessing_switches_the_stability_fallback(configuration: Sam2Configuration, checkpoint: Path) -> None:
    with_it = load_sam2_segmenter(configuration, checkpoint)
    without = load_sam2_segmenter(configuration.model_copy(update={"apply_postprocessing": False}), checkpoint)
    assert model_of(with_it).sam_mask_decoder.dynamic_multimask_via_stability is True
    assert model_of(without).sam_mask_decoder.dynamic_multimask_via_stability is False


# Processes, threads, Hydra ------------------------------------------------------------------------------------


def test_importing_the_module_imports_neither_torch_nor_sam2() -> None:
    assert (
        run_python(
            """
            import sys
            import uveitis_assets.fundus.roi.sam2
            print([name for name in ("torch", "sam2", "hydra", "omegaconf") if name in sys.modules])
            """
        )
        == "[]"
    )


def test_loading_in_threads_leaves_hydra_and_the_random_generator_alone(
    configuration: Sam2Configuration, checkpoint: Path
) -> None:
    """In a fresh process, where sam2 is first imported by the threads."""
    assert (
        run_python(
            f"""
            import sys
            from concurrent.futures import ThreadPoolExecutor
            from pathlib import Path
            import torch
            from uveitis_assets.fundus.configuration import Sam2Configuration
            from uveitis_assets.fundus.roi.sam2 import load_sam2_segmenter

            configuration = Sam2Configuration.model_validate_json({configuration.model_dump_json()!r})
            assert "sam2" not in sys.modules
            before = torch.get_rng_state()
            with ThreadPoolExecutor(4) as pool:
                loaded = list(pool.map(load_sam2_segmenter, [configuration] * 4, [Path({str(checkpoint)!r})] * 4))
            assert torch.equal(before, torch.get_rng_state())
            assert len({{segmenter.report for segmenter in loaded}}) == 1

            from hydra.core.global_hydra import GlobalHydra
            assert not GlobalHydra.instance().is_initialized()
            from hydra import compose, initialize_config_dir
            with initialize_config_dir({str(checkpoint.parent)!r}, version_base="1.3"):
                assert compose("small").model.image_size == {IMAGE_SIDE}
                segmenter = load_sam2_segmenter(configuration, Path({str(checkpoint)!r}))
            print(segmenter.report.complete)
            """
        )
        == "True"
    )


def test_a_process_that_initialised_hydra_itself_keeps_its_own(
    configuration: Sam2Configuration, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text("answer: 42\n")
    assert (
        run_python(
            f"""
            from pathlib import Path
            from hydra import compose, initialize_config_dir
            from hydra.core.global_hydra import GlobalHydra
            from uveitis_assets.fundus.configuration import Sam2Configuration
            from uveitis_assets.fundus.roi.sam2 import load_sam2_segmenter

            initialize_config_dir({str(tmp_path)!r}, job_name="theirs", version_base="1.3")
            theirs = GlobalHydra.instance().hydra
            configuration = Sam2Configuration.model_validate_json({configuration.model_dump_json()!r})
            segmenter = load_sam2_segmenter(configuration, Path({str(checkpoint)!r}))
            assert GlobalHydra.instance().hydra is theirs
            print(segmenter.report.complete, compose("own").answer)
            """
        )
        == "True 42"
    )


def test_segmenting_from_threads_gives_the_masks_of_one_thread(
    segmenter: Sam2Segmenter, images: list[NDArray[np.uint8]]
) -> None:
    alone = segmenter.segment(images)
    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(lambda _: segmenter.segment(images), range(4)):
            for first, second in zip(alone, together, strict=True):
                np.testing.assert_array_equal(first, second)


# Prediction ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_candidates_are_those_of_the_official_predictor(
    segmenter: Sam2Segmenter, images: list[NDArray[np.uint8]]
) -> None:
    """The official predictor takes points in px of each image; sizes here are far from square."""
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(model_of(segmenter))
    predictor._bb_feat_sizes = FEATURE_SIZES
    labels = np.array([label for *_, label in POINTS])
    candidates = segmenter.candidates(images)
    n_foreground = 0
    for image, candidate in zip(images, candidates, strict=True):
        height, width = image.shape[:2]
        predictor.set_image(image)
        coordinates = np.array([(x * width, y * height) for x, y, _ in POINTS])
        expected_masks, expected_scores, expected_logits = predictor.predict(coordinates, labels)
        assert not isinstance(candidate, str)
        masks, scores = candidate
        assert masks.shape == (3, height, width)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
        assert (masks != (expected_masks > 0)).mean() < 1e-3
        assert np.ptp(expected_logits) > 0.01
        n_foreground += int(masks.sum())
    assert 0.02 < n_foreground / sum(3 * image.shape[0] * image.shape[1] for image in images) < 0.98


def test_prompt_points_reach_the_model_in_its_own_pixels(
    segmenter: Sam2Segmenter, images: list[NDArray[np.uint8]]
) -> None:
    seen: list[dict[str, Any]] = []
    encoder = model_of(segmenter).sam_prompt_encoder
    encoder.register_forward_pre_hook(lambda _module, _args, kwargs: seen.append(kwargs), with_kwargs=True)
    segmenter.segment(images[:2])
    coordinates, labels = seen[0]["points"]
    expected = [[12.8, 38.4], [70.4, 115.2], [124.16, 2.56]]
    np.testing.assert_allclose(coordinates.numpy(), [expected, expected], rtol=1e-5)
    assert labels.tolist() == [[1, 1, 0], [1, 1, 0]]


def test_each_mask_has_its_image_size_and_two_values(segmenter: Sam2Segmenter, images: list[NDArray[np.uint8]]) -> None:
    results = segmenter.segment(images)
    masks = [result for result in results if not isinstance(result, str)]
    assert len(masks) >= 3
    for image, result in zip(images, results, strict=True):
        if isinstance(result, str):
            continue
        assert result.shape == image.shape[:2]
        assert result.dtype == np.uint8
        assert set(np.unique(result)) <= {0, 255}
        assert result.any()
    assert segmenter.segment([]) == []


def test_results_do_not_depend_on_the_batch(
    configuration: Sam2Configuration, checkpoint: Path, images: list[NDArray[np.uint8]]
) -> None:
    together = load_sam2_segmenter(configuration.model_copy(update={"batch_size": 4}), checkpoint)
    single = load_sam2_segmenter(configuration.model_copy(update={"batch_size": 1}), checkpoint)
    reversed_order = decoder_logits(together, images[::-1])[::-1]
    for first, second, third in zip(
        decoder_logits(together, images), decoder_logits(single, images), reversed_order, strict=True
    ):
        assert np.ptp(first) > 0.01
        np.testing.assert_allclose(first, second, atol=1e-4)
        np.testing.assert_allclose(first, third, atol=1e-4)
    for first, second in zip(together.segment(images), single.segment(images), strict=True):
        assert isinstance(first, str) == isinstance(second, str)
        if not isinstance(first, str) and not isinstance(second, str):
            assert (first != second).mean() < 1e-3


def test_images_are_not_changed_and_may_be_read_only_views(
    segmenter: Sam2Segmenter, images: list[NDArray[np.uint8]]
) -> None:
    image = images[0]
    expected = segmenter.segment([np.ascontiguousarray(image[:, ::-1])])[0]
    view = image[:, ::-1]
    view.flags.writeable = False
    before = image.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = segmenter.segment([view])[0]
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(image, before)


def test_an_image_of_another_form_is_refused_with_its_place(segmenter: Sam2Segmenter) -> None:
    good = np.zeros((8, 8, 3), dtype=np.uint8)
    for bad in (good[..., 0], good.astype(np.float32), np.zeros((8, 8, 4), np.uint8), good[:0]):
        with pytest.raises(ValueError, match="image 1 of 2: expected RGB uint8"):
            segmenter.segment([good, bad])


def test_single_mask_output_works(
    configuration: Sam2Configuration, checkpoint: Path, images: list[NDArray[np.uint8]]
) -> None:
    segmenter = load_sam2_segmenter(configuration.model_copy(update={"multimask_output": False}), checkpoint)
    for candidate, image in zip(segmenter.candidates(images[:2]), images[:2], strict=True):
        assert not isinstance(candidate, str)
        assert candidate[0].shape == (1, *image.shape[:2])


def test_nothing_is_warned_without_the_cuda_extension(
    configuration: Sam2Configuration, checkpoint: Path, images: list[NDArray[np.uint8]]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_sam2_segmenter(configuration, checkpoint).segment(images)


def test_bfloat16_covers_the_image_encoder(
    configuration: Sam2Configuration, checkpoint: Path, images: list[NDArray[np.uint8]]
) -> None:
    segmenter = load_sam2_segmenter(configuration, checkpoint, precision="bfloat16")
    exact = load_sam2_segmenter(configuration, checkpoint, precision="float32")
    seen: list[torch.dtype] = []
    layer = model_of(segmenter).image_encoder.trunk.blocks[0].attn.qkv
    layer.register_forward_hook(lambda _module, _args, output: seen.append(output.dtype))
    for rounded, reference in zip(segmenter.candidates(images), exact.candidates(images), strict=True):
        assert not isinstance(rounded, str)
        assert not isinstance(reference, str)
        np.testing.assert_allclose(rounded[1], reference[1], atol=0.02)
    assert set(seen) == {torch.bfloat16}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no usable CUDA device")
def test_a_gpu_gives_the_masks_of_the_cpu(
    configuration: Sam2Configuration, checkpoint: Path, images: list[NDArray[np.uint8]]
) -> None:
    on_gpu = configuration.model_copy(update={"device": "cuda"})
    reference = load_sam2_segmenter(configuration, checkpoint)
    exact = load_sam2_segmenter(on_gpu, checkpoint, precision="float32")
    rounded = load_sam2_segmenter(on_gpu, checkpoint)
    assert rounded.precision == "bfloat16"
    masks = reference.segment(images)
    assert not all(isinstance(mask, str) for mask in masks)
    # TensorFloat-32 keeps ten bits, which would hide mistakes of that size.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for expected, found in zip(masks, exact.segment(images), strict=True):
            assert np.mean(np.asarray(found) != np.asarray(expected)) < 1e-3
    for expected, found in zip(reference.candidates(images), rounded.candidates(images), strict=True):
        assert not isinstance(expected, str)
        assert not isinstance(found, str)
        np.testing.assert_allclose(found[1], expected[1], atol=0.02)


@pytest.mark.parametrize(
    ("output", "reason"), [(0, "non-finite mask logits"), (1, "non-finite scores"), (None, "empty mask")]
)
def test_one_bad_image_gets_its_reason_and_leaves_the_others(
    segmenter: Sam2Segmenter, images: list[NDArray[np.uint8]], output: int | None, reason: str
) -> None:
    expected = segmenter.segment(images[:3])

    def spoil(_module: Any, _arguments: Any, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        spoilt = [tensor.clone() for tensor in outputs]
        if output is None:
            spoilt[0][1] = -1.0
        else:
            spoilt[output][1, 2] = math.nan
        return tuple(spoilt)

    model_of(segmenter).sam_mask_decoder.register_forward_hook(spoil)
    results = segmenter.segment(images[:3])
    assert results[1] == reason
    np.testing.assert_array_equal(results[0], expected[0])
    np.testing.assert_array_equal(results[2], expected[2])


def test_a_mask_that_opening_removes_is_a_reason(segmenter: Sam2Segmenter, images: list[NDArray[np.uint8]]) -> None:
    def speck(_module: Any, _arguments: Any, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        logits = torch.full_like(outputs[0], -1.0)
        logits[:, :, 16, 16] = 1.5
        return (logits, *outputs[1:])

    model_of(segmenter).sam_mask_decoder.register_forward_hook(speck)
    assert segmenter.segment([images[2]]) == ["empty mask after post-processing"]


def test_running_out_of_memory_halves_the_batch_and_warns(
    configuration: Sam2Configuration,
    checkpoint: Path,
    images: list[NDArray[np.uint8]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = load_sam2_segmenter(configuration, checkpoint).segment(images)
    segmenter = load_sam2_segmenter(configuration.model_copy(update={"batch_size": 5}), checkpoint)
    n_images_tried: list[int] = []

    def too_little_memory(_module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        n_images_tried.append(len(arguments[0]))
        if len(arguments[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model_of(segmenter).image_encoder.register_forward_pre_hook(too_little_memory)
    with caplog.at_level(logging.WARNING, logger=roi_sam2.__name__):
        results = segmenter.segment(images)
    assert n_images_tried == [5, 2, 2, 1]
    assert [record.message for record in caplog.records] == [
        "out of memory with 5 images per forward pass; going on with 2 (roi.sam2.batch_size is 5)"
    ]
    for result, expectation in zip(results, expected, strict=True):
        assert isinstance(result, str) == isinstance(expectation, str)
        if not isinstance(result, str) and not isinstance(expectation, str):
            assert (result != expectation).mean() < 1e-3


def test_too_little_memory_for_one_image_is_an_error_and_no_empty_result(
    segmenter: Sam2Segmenter, images: list[NDArray[np.uint8]]
) -> None:
    def no_memory(_module: Any, _arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model_of(segmenter).image_encoder.register_forward_pre_hook(no_memory)
    with pytest.raises(Sam2UnavailableError, match=r"out of memory with a single image .* roi\.sam2\.device"):
        segmenter.segment(images)


# Choice and cleaning ------------------------------------------------------------------------------------------


def test_the_choice_score_is_the_weighted_sum_computed_by_hand() -> None:
    mask = np.zeros((10, 20), dtype=bool)
    mask[0:8, 4:14] = True  # 80 of 200 px, the top line touched over 10 of 20 px, centre (5, 10) covered
    assert mask_choice_score(mask, 0.9) == pytest.approx(0.9 + 0.5 * 0.4 + 0.4 * 1.0 + 0.25 - 0.8 * (0.5 / 4))
    mask[1:3, 4:14] = False  # 60 of 200 px in the same box
    assert mask_choice_score(mask, 0.9) == pytest.approx(0.9 + 0.5 * 0.3 + 0.4 * 0.75 + 0.25 - 0.8 * (0.5 / 4))
    mask[:] = False
    mask[9, 19] = True  # a corner: 1 px on two lines
    assert mask_choice_score(mask, 0.5) == pytest.approx(0.5 + 0.5 / 200 + 0.4 - 0.8 * (1 / 20 + 1 / 10) / 4)
    assert mask_choice_score(np.zeros((10, 20), dtype=bool), 1.0) == -math.inf


def test_the_retina_is_chosen_before_the_whole_image_and_before_its_centre_spot() -> None:
    rows, columns = np.mgrid[:90, :100]
    distance = np.hypot(rows - 45, columns - 50)
    retina, spot, whole = distance < 40, distance < 8, np.ones((90, 100), dtype=bool)
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        masks = np.stack([[retina, spot, whole][index] for index in order])
        assert choose_mask(masks, np.full(3, 0.8, dtype=np.float32)) == order.index(0)
    scores = np.array([0.5, 0.95, 0.5], dtype=np.float32)
    assert choose_mask(np.stack([retina, spot, whole]), scores) == 1


def test_empty_candidates_are_never_chosen_and_ties_take_the_first() -> None:
    masks = np.zeros((3, 12, 12), dtype=bool)
    assert choose_mask(masks, np.array([0.9, 0.8, 0.7], dtype=np.float32)) is None
    masks[1:, 4:8, 4:8] = True
    assert choose_mask(masks, np.array([1.0, 0.3, 0.3], dtype=np.float32)) == 1


def test_cleaning_fills_holes_keeps_one_component_and_removes_hairs() -> None:
    mask = np.zeros((200, 260), dtype=bool)
    mask[40:160, 60:180] = True
    mask[90:120, 100:130] = False  # a hole wider than the closing kernel
    mask[10:30, 220:250] = True  # a second, smaller component beyond the closing kernel's reach
    mask[100, 180:215] = True  # a hair of 1 px
    before = mask.copy()
    cleaned = clean_mask(mask, 7, 19)
    expected = np.zeros((200, 260), dtype=np.uint8)
    expected[40:160, 60:180] = 255
    np.testing.assert_array_equal(mask, before)
    assert cleaned.dtype == np.uint8
    assert cv2.connectedComponents(cleaned)[0] == 2
    # Ellipses round the corners off, nothing else.
    different = np.argwhere(cleaned != expected)
    corners = np.array([(40, 60), (40, 179), (159, 60), (159, 179)])
    assert all(np.abs(corners - place).max(axis=1).min() <= 4 for place in different)


def test_cleaning_closes_gaps_narrower_than_the_closing_kernel() -> None:
    mask = np.zeros((120, 120), dtype=bool)
    mask[20:100, 20:100] = True
    mask[20:100, 56:64] = False  # 8 px, cuts the square in two
    assert clean_mask(mask, 7, 19)[60, 60] == 255
    assert clean_mask(mask, 7, 3)[60, 60] == 0


def test_cleaning_leaves_a_mask_at_the_border_whole() -> None:
    mask = np.zeros((50, 60), dtype=bool)
    mask[:30] = True
    np.testing.assert_array_equal(clean_mask(mask, 7, 19) == 255, mask)
    assert clean_mask(np.ones((50, 60), dtype=bool), 7, 19).all()
