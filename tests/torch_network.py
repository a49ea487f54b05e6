"""One network of a group by torch's own functions, autograd and optimizers: what the ensemble is compared with."""

import math

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = {
    "celu": F.celu,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardtanh": F.hardtanh,
    "identity": lambda x: x,
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "relu": torch.relu,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanh": torch.tanh,
}


class TorchNetwork:
    """A network of an ensemble, with leaves and buffers of its own.

    After `forward`, z, n and a are those of its layers: linear map, what the activation gets, what is handed on.
    """

    def __init__(self, ensemble, network):
        self.config, self.network, self.depth = ensemble.configs[network], network, ensemble.model.depth
        self.slots = ensemble.model.slots()
        self.leaves = [nn.Parameter(p[network].clone()) for p in ensemble.parameters]
        self.running = [
            (torch.zeros(len(weight), dtype=weight.dtype), torch.ones(len(weight), dtype=weight.dtype))
            for weight in self.all_of("weight")[:-1]
        ]
        self.optimizer = self.choose_optimizer()
        self.steps = self.clipped = 0

    def of(self, kind, layer):
        """The parameter of a kind and layer, or None."""
        found = (p for s, p in zip(self.slots, self.leaves, strict=True) if (s.kind, s.layer) == (kind, layer))
        return next(found, None)

    def all_of(self, kind):
        return [p for s, p in zip(self.slots, self.leaves, strict=True) if s.kind == kind]

    def activate(self, layer, n):
        name = self.config.model.activation
        return F.prelu(n, self.of("slope", layer)) if name == "prelu" else ACTIVATIONS[name](n)

    def normalize(self, layer, z, training):
        norm = self.config.model.norm
        if norm == "none":
            return z
        weight, bias = self.of("norm_weight", layer), self.of("norm_bias", layer)
        if norm == "layer":
            return F.layer_norm(z, z.shape[1:], weight, bias)
        return F.batch_norm(z, *self.running[layer - 1], weight, bias, training)

    def forward(self, x, masks=(), input_mask=None, *, training=True):
        self.z, self.n, self.a = [], [], []
        if input_mask is not None:
            x = x * input_mask
        for layer in range(1, self.depth + 1):
            z = F.linear(x, self.of("weight", layer), self.of("bias", layer))
            n = self.normalize(layer, z, training)
            branch = self.activate(layer, n)
            if len(masks) > 0:
                branch = branch * masks[layer - 1]
            residual = self.config.model.residual
            if layer == 1 or residual == "none":
                x = branch
            elif residual == "rezero":
                x = x + self.of("gate", layer) * branch
            else:
                x = x + branch * (self.depth**-0.5 if residual == "scaled" else 1.0)
            self.z.append(z)
            self.n.append(n)
            self.a.append(x)
        self.z.append(F.linear(x, self.of("weight", self.depth + 1), self.of("bias", self.depth + 1)))
        return self.z[-1]

    def loss(self, outputs, y, *, training=True):
        if self.config.loss == "mse":
            return F.mse_loss(outputs, y)
        return F.cross_entropy(outputs, y, label_smoothing=self.config.label_smoothing if training else 0.0)

    def choose_optimizer(self):
        o, weights = self.config.optimizer, {id(w) for w in self.all_of("weight")}
        if o.name == "adam":
            return torch.optim.Adam(self.leaves, lr=o.lr, betas=(o.beta1, o.beta2))
        if o.name == "adamw":
            groups = [
                {"params": [p for p in self.leaves if id(p) in weights], "weight_decay": o.weight_decay},
                {"params": [p for p in self.leaves if id(p) not in weights], "weight_decay": 0.0},
            ]
            return torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2))
        return torch.optim.SGD(self.leaves, lr=o.lr, momentum=o.momentum or 0.0, nesterov=o.name == "nesterov")

    def rate(self):
        """The learning rate of the next step."""
        o, t, steps = self.config.optimizer, self.steps, self.config.train.steps
        if t < o.warmup:
            return o.lr * (t + 1) / o.warmup
        if o.schedule == "cosine":
            return o.lr * 0.5 * (1 + math.cos(math.pi * (t - o.warmup) / (steps - o.warmup)))
        return o.lr

    def clip(self):
        """Clip the gradients, unit by unit, value by value or together; return whether something was clipped."""
        name, threshold = self.config.clip.name, self.config.clip.threshold
        before = [p.grad.clone() for p in self.leaves]
        if name == "norm":
            total = torch.cat([p.grad.flatten() for p in self.leaves]).norm()
            for p in self.leaves:
                p.grad.mul_(min(1.0, threshold / float(total)))
        elif name == "value":
            nn.utils.clip_grad_value_(self.leaves, threshold)
        elif name == "adaptive":
            for p in self.leaves:
                for unit, grad in zip(p.data, p.grad, strict=True) if p.dim() == 2 else [(p.data, p.grad)]:
                    most = threshold * max(float(unit.norm()), 1e-3)
                    if float(grad.norm()) > most:
                        grad.mul_(most / float(grad.norm()))
        return any(not torch.equal(p.grad, b) for p, b in zip(self.leaves, before, strict=True))

    def differentiate(self, x, y, masks=(), input_mask=None):
        """Leave the gradients of the loss with its penalty in the leaves; return the loss without."""
        self.optimizer.zero_grad()
        loss = self.loss(self.forward(x, masks, input_mask), y)
        penalty = sum(w.square().sum() for w in self.all_of("weight")) * self.config.optimizer.l2 / 2
        (loss + penalty).backward()
        return loss.detach()

    def update(self):
        o, rate = self.config.optimizer, self.rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.clipped += self.clip()
        with torch.no_grad():
            if o.name not in ("adam", "adamw"):
                for weight in self.all_of("weight"):
                    weight.mul_(1 - rate * o.weight_decay)
        self.optimizer.step()
        if o.max_norm is not None:
            with torch.no_grad():
                for weight in self.all_of("weight"):
                    norms = weight.norm(dim=1, keepdim=True)
                    weight.mul_(torch.where(norms > o.max_norm, o.max_norm / norms, 1.0))
        self.steps += 1

    def step(self, x, y, masks=(), input_mask=None):
        """Take a whole step, and return the loss before it."""
        loss = self.differentiate(x, y, masks, input_mask)
        self.update()
        return loss

    def step_of(self, ensemble):
        """Take a step on the batch and the masks that the network has in the group now."""
        masks = ensemble.masks.values[self.network] if ensemble.masks else ()
        input_mask = ensemble.input_masks.values[self.network, 0] if ensemble.input_masks else None
        return self.step(ensemble.batches.x[self.network], ensemble.batches.y[self.network], masks, input_mask)
