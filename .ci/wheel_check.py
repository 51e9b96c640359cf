"""Run away from the checkout: is the installed wheel whole, typed and working?"""

import importlib.metadata
import importlib.resources
import pathlib
import sys

import captum_attnkd.evaluation.datasets.digits as digits
import torch

import captum_attnkd

place = pathlib.Path(captum_attnkd.__file__)
assert place.is_relative_to(pathlib.Path(sys.prefix)), f"imported from {place}"
assert importlib.metadata.version("captum-attnkd") == captum_attnkd.__version__
assert importlib.resources.files("captum_attnkd").joinpath("py.typed").is_file()

images = digits.scattered_digits(24).images
model = digits.DigitNet().eval()
attribution = captum_attnkd.AttentiveKDAttribution(model).fit([images], distil_steps=2, explain_steps=2, progress=False)
maps = attribution.attribute(images, target=3)
assert maps.shape == images.shape
assert bool(torch.isfinite(maps).all())
print(f"wheel of captum_attnkd {captum_attnkd.__version__}: installed, imported and fitted from {place.parent}")
