"""The network of datasets/digits: `python -m trtkit.course.recipes.digits` (5 s)."""

from __future__ import annotations

import torch

from trtkit.course.digits import digit_network, digits
from trtkit.course.recipes.export import ship

if __name__ == "__main__":
    torch.set_num_threads(1)
    learn, judge = digits()
    model = ship(digit_network(learn), {"input": torch.from_numpy(judge.x[:2])}, "digits")
    right = model.run({"x": judge.x})["logits"].argmax(1) == judge.y
    print(f"{model}\naccuracy on {len(right)} digits: {right.mean():.4f}")
