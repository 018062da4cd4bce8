"""KD3 in plain loops: dynamic selection, shared classifier, weighted alignment, both contrasts of the paper."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from dfkd.engine.core import Task
from dfkd.engine.plan import Plan
from dfkd.methods.kd3 import KD3
from dfkd.ops.augment import crop_flip
from dfkd.ops.mixing import draw_mix
from dfkd.ops.pixels import as_images


def train(task: Task, method: KD3, plan: Plan) -> None:
    T, S, rng = task.teacher.freeze(), task.student, task.runtime.generator
    if task.web is None or T.head is None or S.head is None:
        raise ValueError("this page needs web images and two linear classifiers")
    web = torch.cat([images for _, images in task.web.blocks(64)])
    kept = max(1, round(method.pool_share * len(web)))
    web = web[torch.randperm(len(web), generator=rng)[:kept].sort().values]
    S.head.load_state_dict(T.head.state_dict())
    S.head.requires_grad_(False)
    heads = {who: nn.Linear(S.head.in_features, method.head_width) for who in ("student", "teacher")}
    free = [p for p in S.net.parameters() if p.requires_grad]
    free += [p for head in heads.values() for p in head.parameters()]
    optimizer = SGD(free, lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=True)
    for t in range(plan.rounds):
        if t % method.select_every == 0:
            S.eval()
            chosen = _select(task, method, web, t, plan.rounds)
        optimizer.param_groups[0]["lr"] = plan.rate(t)
        S.train()
        for _ in range(plan.steps):
            rows = chosen[torch.randint(len(chosen), (plan.batch_size,), generator=rng)]
            x = as_images(crop_flip(web[rows], rng, method.pad, method.flip))
            perturbed = _mix_distribution(x, *draw_mix(len(x), method.delta, rng))
            with torch.no_grad():
                t_clean, t_other = T(x), T(perturbed)
            s_clean = S(x)
            p_s, p_t = s_clean.logits.softmax(dim=1), t_clean.logits.softmax(dim=1)
            w = torch.sigmoid(-(p_s - p_t).abs().sum(dim=1)).detach()
            loss = (w * (s_clean.features - t_clean.features).square().mean(dim=1)).mean()
            own = heads["student"](s_clean.features), heads["student"](S(perturbed).features)
            given = heads["teacher"](t_clean.features), heads["teacher"](t_other.features)
            mdcl = _contrast(*own, method.temperature) + _contrast(*given, method.temperature)
            loss = loss + method.alpha * (method.reference_batch or len(x)) * mdcl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        S.eval()
    S.head.requires_grad_(True)


@torch.no_grad()
def _select(task: Task, method: KD3, web: Tensor, t: int, rounds: int) -> Tensor:
    share = math.exp(-5 * (t / (rounds / 2) - 1) ** 2) if t <= rounds / 2 else 1.0
    p_i, y_i = torch.empty(len(web)), torch.empty(len(web), dtype=torch.int64)
    for start in range(0, len(web), method.block):
        x = as_images(web[start : start + method.block])
        p_s, p_t = task.student(x).logits.softmax(dim=1), task.teacher(x).logits.softmax(dim=1)
        c = (1 - share) * p_t + share * p_s
        p_i[start : start + method.block], y_i[start : start + method.block] = c.max(dim=1)
    n_k = [int((y_i == k).sum()) for k in range(task.classes)]
    thresholds = [method.v_th * n / max(n_k) for n in n_k]
    return torch.tensor([i for i in range(len(web)) if float(p_i[i]) > thresholds[int(y_i[i])]])


def _mix_distribution(x: Tensor, lam: Tensor, partner: Tensor) -> Tensor:
    mean = x.mean(dim=(2, 3), keepdim=True)
    std = x.std(dim=(2, 3), keepdim=True, correction=0) + 1e-6
    lam = lam.view(-1, 1, 1, 1)
    gamma = lam * std + (1 - lam) * std[partner]
    beta = lam * mean + (1 - lam) * mean[partner]
    return gamma * ((x - mean) / std) + beta


def _contrast(z: Tensor, perturbed: Tensor, temperature: float) -> Tensor:
    similarity = F.normalize(z, dim=1) @ F.normalize(perturbed, dim=1).T / temperature
    own = torch.eye(len(z), dtype=torch.bool)
    return (similarity.masked_fill(own, -math.inf).logsumexp(dim=1) - similarity.diagonal()).mean()
