"""What is computed stays, and so do the names in checkpoints."""

import torch

from uveitis_assets.detection.models.acceleration import speed_up
from uveitis_assets_tests.detection.models.test_detector import small_detector


def test_channels_last_changes_neither_names_nor_maps() -> None:
    plain, fast = small_detector().eval(), small_detector().eval()
    speed_up(fast, channels_last=True, compiled=False)
    assert list(fast.state_dict()) == list(plain.state_dict())
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for name, level in plain.backbone(images).items():
            torch.testing.assert_close(fast.backbone(images)[name], level, rtol=1e-4, atol=1e-4)
    assert any(
        weights.is_contiguous(memory_format=torch.channels_last) and not weights.is_contiguous()
        for weights in fast.backbone.parameters()
        if weights.dim() == 4
    )


def test_a_compiled_backbone_keeps_the_names_of_its_state() -> None:
    plain, fast = small_detector(), small_detector()
    speed_up(fast, channels_last=False, compiled=True)
    assert list(fast.state_dict()) == list(plain.state_dict())
