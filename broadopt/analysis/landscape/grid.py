"""Error and loss of one network at many weights: data loaded once, weights put in place, BN re-estimated at each."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from broadopt.analysis.landscape.images import Images, in_batches
from broadopt.analysis.landscape.networks import put
from broadopt.analysis.landscape.progress import progress
from broadopt.analysis.landscape.runs import Run, check_code
from broadopt.analysis.landscape.store import Point, Row, Store
from broadopt.config.identity import AS_WITHOUT
from broadopt.data.batches import evaluated_at_once
from broadopt.devices.device import autocast
from broadopt.methods import batchnorm
from broadopt.models.build import network
from broadopt.predictor import Predictor
from broadopt.seeds import derive


@dataclass(frozen=True)
class Measured:
    """What a network does at some weights. Standard errors are those of a mean over independent images."""

    test_error: float
    """Percent."""
    test_error_se: float
    test_nll: float
    """Mean negative log-likelihood, nats."""
    train_error: float
    train_loss: float
    """Mean cross-entropy, without label smoothing, nats."""
    train_loss_se: float
    train_objective: float
    """`train_loss` plus the L2 term of the training loss (Penalty)."""
    norm: float
    """|w|."""


SGD = {AS_WITHOUT["optimizer"]["_target_"], "torch.optim.SGD", "torch.optim.sgd.SGD"}
"""The optimizers whose weight decay is known to be the gradient of an L2 term."""

ADAMW = {"broadopt.methods.steps.optimizers.adamw", "torch.optim.AdamW", "torch.optim.adamw.AdamW"}
"""Those of which it is known that it is not."""


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """weight_decay / 2 |w|^2, the L2 term that the training losses of some runs have in common.

    One surface is drawn for all of them, so that the term has to be the same function: it is left out (weight_decay 0)
    where their weight decays differ, and where an optimizer other than SGD decays weights. AdamW takes the decay off
    the weights, not through the gradient: it minimises no loss with such a term (Loshchilov and Hutter 2019). What
    others do with it is not known here.
    """

    weight_decay: float
    left_out: str = ""
    """Why there is no term, in the words of a caption; "" where there is one."""

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Penalty":
        """That of some runs."""
        others = {str(run.recipe.optimizer["_target_"]) for run in runs if _decay(run)} - SGD
        if others:
            names = " and ".join(sorted({target.rpartition(".")[2] for target in others}))
            why = (
                f"weight decay is a term of the loss with SGD, not with {names}"
                if others <= ADAMW
                else f"weight decay is known to be a term of the loss for SGD alone (here: {names})"
            )
            return cls(weight_decay=0.0, left_out=why)
        decays = sorted({_decay(run) for run in runs})
        if len(decays) > 1:
            found = ", ".join(f"{decay:g}" for decay in decays)
            return cls(weight_decay=0.0, left_out=f"the runs have different weight decays ({found})")
        return cls(weight_decay=decays[0])

    @property
    def words(self) -> str:
        """What a caption says of it, behind the cross-entropy."""
        if self.left_out:
            return f"without an L2 term, since {self.left_out}"
        return f"plus {self.weight_decay / 2:g} ‖w‖²"


def _decay(run: Run) -> float:
    """A run's weight decay: an optimizer of its own may be given another than the recipe's."""
    found: float = run.recipe.optimizer.get("weight_decay", run.recipe.weight_decay)
    return found


class Landscape:
    """A network whose weights are put where it is measured; its data stay on the device."""

    def __init__(
        self,
        model: nn.Module,
        *,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        statistics: Tensor,
        weight_decay: float,
        batch_size: int,
        context: torch.autocast,
        memory_format: torch.memory_format = torch.contiguous_format,
        seed: int = 1,
    ) -> None:
        """train, test: float [N, 3, 32, 32] and int64 [N] each, on the device. `statistics`: the images on which BN
        statistics are re-estimated, in batches of `batch_size`; `seed`: of dropout in these passes. `context`: in which
        everything is evaluated.
        """
        images = train[0]
        self.model = model.to(device=images.device, memory_format=memory_format).eval()  # type: ignore[call-overload]
        self.train, self.test, self.statistics, self.context = train, test, statistics, context
        self.weight_decay, self.batch_size, self.seed = weight_decay, batch_size, seed
        self.has_bn = bool(batchnorm.statistics(model))

    @classmethod
    def of(
        cls, run: Run, images: Images, *, weight_decay: float, test_images: int | None, train_images: int
    ) -> "Landscape":
        """That of a run's network, with its batch size and precision. Raises InputError for a network that is not
        broadopt's.
        """
        check_code(run, run.recipe.model.target)
        return cls(
            network(run.recipe.model, len(images.classes)),
            train=images.train(train_images),
            test=images.test(test_images),
            statistics=images.augmented(train_images),
            weight_decay=weight_decay,
            batch_size=run.recipe.batch_size,
            context=autocast(run.recipe.precision, images.device),
            memory_format=images.memory_format,
            seed=images.seed,
        )

    def at(self, weights: Tensor) -> Measured:
        """What the network does at `weights` [P], with BN statistics re-estimated there."""
        put(self.model, weights)
        if self.has_bn:
            torch.manual_seed(derive(self.seed, "figure statistics"))  # the same dropout at every point
            with self.context:
                batchnorm.reestimate(self.model, in_batches(self.statistics, self.batch_size))
        return self.measured()

    def as_stored(self, network: Predictor) -> Measured:
        """What a network of the same form does with its own weights and buffers (BN statistics), which leave no trace
        in the buffers of what is measured later.
        """
        kept = [buffer.clone() for buffer in self.model.buffers()]
        self.model.load_state_dict(network.model.state_dict())
        found = self.measured()
        for buffer, value in zip(self.model.buffers(), kept, strict=True):
            buffer.copy_(value)
        return found

    def take_buffers(self, network: Predictor) -> None:
        """Have the buffers of a network of the same form, which may hold more than BN statistics: a network of one's
        own may have drawn some, and another draw is another network.
        """
        self.model.load_state_dict(network.model.state_dict())

    @torch.no_grad()
    def measured(self) -> Measured:
        """What the network does as it is now."""
        test_losses, test_hits = self._outcomes(*self.test)
        losses, hits = self._outcomes(*self.train)
        count, wrong = len(test_hits), len(test_hits) - float(test_hits.sum())  # counted, so that 3 % is 3.0
        squares = [parameter.double().square().sum() for parameter in self.model.parameters()]
        square = sum(torch.stack(squares).tolist())  # one wait for the device
        loss = float(losses.mean())
        return Measured(
            test_error=100 * wrong / count,
            test_error_se=100 * math.sqrt(wrong * (count - wrong) / count) / count,
            test_nll=float(test_losses.mean()),
            train_error=100 * (len(hits) - float(hits.sum())) / len(hits),
            train_loss=loss,
            train_loss_se=float(losses.std(correction=1)) / math.sqrt(len(losses)),
            train_objective=loss + self.weight_decay / 2 * square,
            norm=math.sqrt(square),
        )

    def _outcomes(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and hit of each image, float64 [N] each; logits that are not finite hit nothing."""
        at_once = evaluated_at_once(images.device)
        losses, hits = [], []
        for batch, targets in zip(images.split(at_once), labels.split(at_once), strict=True):
            with self.context:
                logits = self.model(batch)
            logits = logits.double()
            losses.append(cross_entropy(logits, targets, reduction="none"))
            hits.append((logits.argmax(dim=1) == targets) & logits.isfinite().all(dim=1))
        return torch.cat(losses), torch.cat(hits).double()


def measure(
    landscape: Landscape, points: Sequence[Point], weights: Callable[[Point], Tensor], store: Store, *, what: str
) -> list[Row]:
    """A row a point: its coordinates and what the network does at `weights`(point) [P]. Points that `store` knows are
    not measured again; progress and the time left go to stderr.
    """
    rows = {id(point): store.row(point, dict) for point in points if store.knows(point)}
    waiting = [point for point in points if id(point) not in rows]
    for point in progress(waiting, what=what, done=len(rows)):
        rows[id(point)] = store.row(point, partial(landscape.at, weights(point)))
    return [rows[id(point)] for point in points]
