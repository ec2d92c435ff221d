"""The masked autoencoder against independent computations, and its training against kills."""

import argparse

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from uveitis_assets.detection.pretraining.masked_autoencoder import (
    SHAPES,
    MaskedAutoencoder,
    patches_of,
    sine_cosine_positions,
)
from uveitis_assets.detection.pretraining.pretrain import pretrain_encoder
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.detection.pretraining.preprocessed_images import configuration, lane_of_images

TINY = SHAPES["tiny_p16"]


def tiny() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(TINY)


def test_patches_are_cut_rows_first_with_channels_last() -> None:
    images = torch.rand(2, 3, 64, 64)
    cut = patches_of(images, 16)
    for number in range(16):
        row, column = divmod(number, 4)
        window = images[:, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
        torch.testing.assert_close(cut[:, number], window.permute(0, 2, 3, 1).reshape(2, -1))


def test_position_embeddings_follow_the_formula_of_the_paper() -> None:
    width, grid = 16, 3
    found = sine_cosine_positions(width, grid)
    assert found.shape == (10, width)
    assert (found[0] == 0).all()
    for row in range(grid):
        for column in range(grid):
            expected = []
            for position in (column, row):
                angles = [position / 10000 ** (2 * k / (width / 2)) for k in range(width // 4)]
                expected += [np.sin(a) for a in angles] + [np.cos(a) for a in angles]
            np.testing.assert_allclose(found[1 + row * grid + column], expected, atol=1e-12)


def test_three_quarters_are_hidden_and_the_visible_ones_are_those_of_the_smallest_noise() -> None:
    model = tiny()
    noise = torch.rand(2, 16)
    latent, hidden, _ = model.encode(torch.rand(2, 3, 64, 64), noise, 0.75)
    assert latent.shape == (2, 1 + 4, TINY.width)
    for line, values in zip(hidden, noise, strict=True):
        assert set(line.logical_not().nonzero().flatten().tolist()) == set(values.argsort()[:4].tolist())


def test_loss_looks_at_hidden_patches_alone_and_normalizes_each_patch() -> None:
    model = tiny()
    images = torch.rand(1, 3, 64, 64)
    predicted = torch.rand(1, 16, 768)
    hidden = torch.zeros(1, 16)
    hidden[0, 5] = 1
    patch = images[0, :, 16:32, 16:32].permute(1, 2, 0).reshape(-1).double()
    normalized = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
    expected = (predicted[0, 5].double() - normalized).square().mean()
    assert model.reconstruction_loss(images, predicted, hidden).item() == pytest.approx(expected.item(), rel=1e-5)


def test_visible_patches_decide_the_prediction_and_hidden_pixels_do_not() -> None:
    model = tiny().eval()
    images, noise = torch.rand(1, 3, 64, 64), torch.rand(1, 16)
    changed = images.clone()
    number = int(noise.argmax())
    row, column = divmod(number, 4)
    changed[:, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 0
    with torch.no_grad():
        first, _, order = model.encode(images, noise, 0.75)
        second, _, _ = model.encode(changed, noise, 0.75)
        torch.testing.assert_close(model.decode(first, order), model.decode(second, order))


@pytest.fixture
def lane(store: ArtefactStore) -> ArtefactStore:
    """A store with ``lane_of_images``."""
    lane_of_images(store)
    return store


def test_a_fixed_batch_is_overfitted() -> None:
    model = tiny()
    images = torch.rand(4, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    noise = torch.rand(4, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    losses = []
    for _ in range(150):
        loss = model(images, noise, 0.75)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_test_images_are_never_shown(lane: ArtefactStore) -> None:
    for path in (lane.global_image("uwf700__5", 96), lane.tile("uwf700__5", "tile_000")):
        path.unlink()
    outcome = pretrain_encoder(lane, configuration(epochs=2), device="cpu", log=lambda line: None)
    assert (outcome.n_images, outcome.n_held_out, outcome.n_steps) == (5, 1, 6)


def test_weights_are_continued_from_a_retfound_file_and_a_strange_file_is_refused(lane: ArtefactStore) -> None:
    torch.manual_seed(7)
    other = MaskedAutoencoder(TINY)
    # RETFound's own files hold their command line beside the tensors.
    content = {"model": other.state_dict(), "epoch": 799, "args": argparse.Namespace(model="mae_vit_large_patch16")}
    torch.save(content, lane.root / "retfound.pth")
    outcome = pretrain_encoder(
        lane,
        configuration(start_from="retfound.pth", epochs=1, learning_rate=1e-9),
        device="cpu",
        log=lambda line: None,
    )
    trained = load_file(outcome.encoder)
    torch.testing.assert_close(trained["blocks.0.attn.qkv.weight"], other.state_dict()["blocks.0.attn.qkv.weight"])
    torch.save({"model": {"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}}, lane.root / "strange.pth")
    with pytest.raises(
        ValueError, match=r"strange\.pth: 0\.0% of the wanted parameters.* 1 shape_mismatch \(blocks\.0\.attn"
    ):
        pretrain_encoder(lane, configuration(start_from="strange.pth"), device="cpu", log=lambda line: None)


def test_weights_of_another_kind_of_training_are_refused_however_well_they_fit(lane: ArtefactStore) -> None:
    torch.save({"teacher": tiny().state_dict()}, lane.root / "dinov2.pth")
    with pytest.raises(
        ValueError, match=r"dinov2\.pth: expected a masked autoencoder's weights.*found the root `teacher`"
    ):
        pretrain_encoder(lane, configuration(start_from="dinov2.pth"), device="cpu", log=lambda line: None)


def test_a_changed_configuration_starts_anew(lane: ArtefactStore) -> None:
    pretrain_encoder(lane, configuration(epochs=1), device="cpu", log=lambda line: None)
    lines: list[str] = []
    pretrain_encoder(lane, configuration(epochs=1, seed=1), device="cpu", log=lines.append)
    assert not any("continuing" in line for line in lines)


def test_another_file_of_the_same_name_to_start_from_starts_anew(lane: ArtefactStore) -> None:
    starts = configuration(start_from="retfound.pth", epochs=1, learning_rate=1e-9)
    weights = []
    for seed in (7, 8):
        torch.manual_seed(seed)
        other = MaskedAutoencoder(TINY).state_dict()
        torch.save({"model": other}, lane.root / "retfound.pth")
        lines: list[str] = []
        outcome = pretrain_encoder(lane, starts, device="cpu", log=lines.append)
        assert not any("continuing" in line for line in lines)
        name = "blocks.0.attn.qkv.weight"
        torch.testing.assert_close(load_file(outcome.encoder)[name], other[name])
        weights.append(load_file(outcome.encoder)[name])
    assert not torch.equal(*weights)
    pretrain_encoder(lane, starts, device="cpu", log=lines.append)
    assert any("continuing" in line for line in lines), "nothing has changed"
