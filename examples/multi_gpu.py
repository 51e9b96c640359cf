"""A fit on several processes, one a GPU, with Accelerate; the main one alone writes, and all end with the same weights.

accelerate launch --num_processes 2 examples/multi_gpu.py      two GPUs
torchrun --nproc_per_node 2 examples/multi_gpu.py              the same; without GPUs two processes on the CPU (gloo)
torchrun --nproc_per_node 2 examples/multi_gpu.py --quick      seconds, with maps that mean nothing

(`accelerate launch --cpu` starts one process only, whatever `--num_processes` says, unless it is given MPI's hosts.)
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather
from captum_attnkd.evaluation.datasets.digits import scattered_digits, train_digit_net
from captum_attnkd.evaluation.localisation import pointing_game
from pictures import draw, options_of
from torch.utils.data import DataLoader, TensorDataset

from captum_attnkd import AttentiveKDAttribution


def main() -> None:
    """Fit on all processes, compare their weights, save and draw on one."""
    options = options_of(__doc__).parse_args()
    quick = options.quick
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    device, count = accelerator.device, accelerator.num_processes
    accelerator.print(
        f"{count} processes; the main one is on {device}, and they talk by {accelerator.state.backend}.\n"
    )

    # Every process must explain the same model: the main one's, whatever rounding made of the others.
    data = scattered_digits(300 if quick else 3000)
    model = train_digit_net(data, epochs=1 if quick else 3).to(device)
    model.load_state_dict(broadcast(model.state_dict()))

    # Each process is given the whole loader, and takes its share of the images. A step is `batch_size` images a process.
    loader = DataLoader(TensorDataset(data.images), batch_size=64, shuffle=True)
    steps = {"distil_steps": 4, "explain_steps": 4} if quick else {"distil_steps": 50, "explain_steps": 250}
    attribution = AttentiveKDAttribution(model).fit(loader, **steps, accelerator=accelerator)
    accelerator.print(f"{attribution.report_}\n")

    weights = torch.cat([tensor.flatten().double() for tensor in attribution.surrogate.state_dict().values()])
    everyones = gather(weights[None].to(device))
    same = bool((everyones == everyones[0]).all())
    accelerator.print(f"{weights.numel():,} weights, equal across {len(everyones)} processes: {same}")

    if accelerator.is_main_process:
        test = scattered_digits(12 if quick else 100, seed=1, split="test")
        masks = attribution.saliency(test.images.to(device), target=test.labels[:, 0].to(device)).cpu()
        hits = pointing_game(masks, test.masks[:, 0])
        print(f"{hits.mean():.1%} of {len(hits)} maps have their maximum on the digit")
        captions = [f"a {label}" for label in test.labels[:8, 0]]
        path = draw(options.out / "multi_gpu.png", test.images[:8], {"ours": masks[:8]}, captions)
        attribution.save(options.out / "multi_gpu.safetensors")
        print(f"\nPicture: {path}\nSurrogate: {options.out / 'multi_gpu.safetensors'}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if not same:
        raise SystemExit("the processes ended with different weights")


if __name__ == "__main__":
    main()
