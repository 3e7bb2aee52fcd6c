"""The specification: Muon with an AdamW fallback, one process, whole tensors, plain PyTorch."""

import torch


def newton_schulz(u, coefficients, safety=1.0, scale_rows=False, form="standard"):
    """Approximates P V^T of u = P S V^T. u: (rows, cols); coefficients: list of (a, b, c)."""
    if form == "auto":
        form = "gram" if 2 * max(u.shape) >= 3 * min(u.shape) else "standard"
    tall = u.shape[0] > u.shape[1]
    x = (u.T if tall else u) / (safety * (u.norm() or 1.0))
    x = x / (x @ x.T).abs().sum(1).sqrt()[:, None] if scale_rows else x
    gram, q = x @ x.T, torch.eye(x.shape[0], dtype=x.dtype)
    for a, b, c in coefficients:
        if form == "standard":
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        else:
            p = a * torch.eye(x.shape[0], dtype=x.dtype) + b * gram + c * gram @ gram
            gram, q = p @ gram @ p, p @ q
    x = x if form == "standard" else q @ x
    return x.T if tall else x


SCALES = {
    "original": lambda r, c: max(1.0, r / c) ** 0.5,
    "match_rms_adamw": lambda r, c: 0.2 * max(r, c) ** 0.5,
    "spectral_unclamped": lambda r, c: (r / c) ** 0.5,
    "none": lambda r, c: 1.0,
}


def qk_clip(params, rows, largest, threshold=100.0):
    """After a step. rows: (name, places in it, the heads that it is of, power of their gamma); largest: head -> logit."""
    for name, places, heads, power in rows:
        gamma = min([threshold / largest[h] for h in heads if largest[h] > threshold], default=1.0)
        params[name].view(-1)[places] *= gamma**power


class Muon:
    """params: name -> tensor, stepped in place. roles: name -> "muon" | "adamw". decays: name -> decay as told."""

    momentum, nesterov, kind, scale, form, safety = 0.95, True, "ema", "original", "standard", 1.0
    weight_decay, cautious_wd, betas, eps = 0.0, False, (0.9, 0.95), 1e-8

    def __init__(self, params, roles, coefficients, lr, adam_lr, decays={}, blocks={}, **options):
        assert options.keys() <= vars(Muon).keys(), options
        self.__dict__.update({k: v for k, v in locals().items() if k not in ("self", "options")}, **options)
        self.t, self.m, self.v = 0, *({n: torch.zeros_like(p) for n, p in params.items()} for _ in "mv")

    def decayed(self, p, rate, update):
        smaller = p * (1 - rate)
        return torch.where(update * p >= 0, smaller, p) if self.cautious_wd else smaller

    def step(self, gradients, clip=0.0):
        """gradients: name -> averaged raw gradient; clip: global norm, 0 for none. Returns the raw norm."""
        self.t += 1
        norm = sum((g.double() ** 2).sum() for g in gradients.values()).sqrt().item()
        factor = 1.0 / max(1.0, (norm + 1e-6) / clip) if clip > 0 else 1.0
        for name, p in self.params.items():
            g, m, v = gradients[name] * factor, self.m[name], self.v[name]
            decay = self.decays.get(name, self.weight_decay if p.ndim >= 2 else 0.0)
            self._muon(name, p, g, m, decay) if self.roles[name] == "muon" else self._adamw(p, g, m, v, decay)
        return norm

    def _muon(self, name, p, g, m, decay):
        gain = 1 - self.momentum if self.kind == "ema" else 1.0
        m.copy_(self.momentum * m + gain * g)
        u, w = (self.momentum * m + gain * g if self.nesterov else m).flatten(), p.flatten()
        for b in self.blocks.get(name) or [torch.arange(p.numel()).view(len(p), -1)]:  # (outputs, inputs): places in p
            o = SCALES[self.scale](*b.shape) * newton_schulz(u[b], self.coefficients, self.safety, form=self.form)
            w[b] = self.decayed(w[b], self.lr * decay, o) - self.lr * o
        p.copy_(w.view_as(p))

    def _adamw(self, p, g, m, v, decay):
        b1, b2 = self.betas
        m.copy_(b1 * m + (1 - b1) * g)
        v.copy_(b2 * v + (1 - b2) * g * g)
        update = (m / (1 - b1**self.t)) / ((v / (1 - b2**self.t)).sqrt() + self.eps)
        p.copy_(self.decayed(p, self.adam_lr * decay, update) - self.adam_lr * update)
