"""Run away from the checkout: is the installed wheel whole, typed and working, and its command too?"""

import importlib.metadata
import importlib.resources
import importlib.util
import pathlib
import subprocess
import sys

import captum_attnkd.evaluation.datasets.digits as digits
import torch

import captum_attnkd

place = pathlib.Path(captum_attnkd.__file__)
assert place.is_relative_to(pathlib.Path(sys.prefix)), f"imported from {place}"
assert importlib.metadata.version("captum-attnkd") == captum_attnkd.__version__
assert importlib.resources.files("captum_attnkd").joinpath("py.typed").is_file()
assert importlib.resources.files("captum_attnkd.evaluation").joinpath("templates/report.html").is_file()
assert importlib.util.find_spec("tests") is None, "tests are installed"

images = digits.scattered_digits(24).images
model = digits.DigitNet().eval()
attribution = captum_attnkd.AttentiveKDAttribution(model).fit([images], distil_steps=2, explain_steps=2, progress=False)
maps = attribution.attribute(images, target=3)
assert maps.shape == images.shape
assert bool(torch.isfinite(maps).all())
attribution.save("wheel.safetensors")
loaded = captum_attnkd.AttentiveKDAttribution.load("wheel.safetensors", model)
assert torch.equal(loaded.attribute(images, target=3), maps)

command = pathlib.Path(sys.executable).parent / "attnkd"
listed = subprocess.run([command, "names"], check=True, stdout=subprocess.PIPE, text=True).stdout
assert all(name in listed for name in ("ours", "grad-cam", "road", "digits")), listed
study = ["study", "--model", "digits", "--help"]
assert "--images" in subprocess.run([command, *study], check=True, stdout=subprocess.PIPE, text=True).stdout
print(
    f"wheel of captum_attnkd {captum_attnkd.__version__}: installed, imported and fitted from {place.parent}; attnkd runs"
)
