"""Seeded procedural retinal images with their truth, for the demo, tests and benchmarks.

Images are drawn from scratch: ultra-widefield with oriented-box labels, regular fundus with one mask per lesion
class. This file names the public functions; each idea has its own module. It needs OpenCV at import, so components
and definitions must not import it.
"""

from uveitis_assets.sample.files import write_fgadr, write_many_small, write_sample, write_uwf700
from uveitis_assets.sample.regular_fundus import LESION_FOLDERS, RegularFundusSample, render_regular_fundus
from uveitis_assets.sample.ultra_widefield import UltraWidefieldSample, render_ultra_widefield

__all__ = [
    "LESION_FOLDERS",
    "RegularFundusSample",
    "UltraWidefieldSample",
    "render_regular_fundus",
    "render_ultra_widefield",
    "write_fgadr",
    "write_many_small",
    "write_sample",
    "write_uwf700",
]
