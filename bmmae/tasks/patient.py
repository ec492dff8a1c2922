"""Classes and survival of patients, any number of targets at once, labels missing here and there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import nn

from bmmae.arrays import Bool, Float, Int, Tensor
from bmmae.errors import ConfigError
from bmmae.losses import class_loss, cox_partial_likelihood, logistic_hazard
from bmmae.model.beside import Beside, shown_variables, unknown_values
from bmmae.model.patient import PatientModelConfig
from bmmae.targets import UNKNOWN, Target, censoring_weights, survival_classes
from bmmae.tasks.task import Batch, Mode, StepOutput, tensors


class PatientTask:
    """Negative log-likelihoods of the targets, added up over the targets and the patients whose label is known.

    The count is that of the patients with a label of any target, so a target with few labels counts for what it has.
    A Cox target's risk sets are those of a batch: for it alone, two half batches are not one whole batch. In
    evaluation they are those of the whole validation set (`judge_together`).

    Args:
        config: The model's config; class weights are the targets' own.
        importance: Factor on a target's loss, by name; 1 where not named.
        focal: Exponent of the focal loss; 0 is plain cross-entropy.
        token_share: Share of each patient's tokens that training sees; the rest is dropped at random.

    Raises:
        ConfigError: If `importance` names no target.
    """

    selection: tuple[str, Mode] = ("loss", "min")

    def __init__(
        self,
        config: PatientModelConfig,
        *,
        importance: Mapping[str, float] | None = None,
        focal: float = 0.0,
        token_share: float = 1.0,
    ) -> None:
        self.config = config
        self.importance = dict(importance or {})
        strange = self.importance.keys() - {target.name for target in config.targets}
        if strange:
            raise ConfigError(
                f"head.importance names no target by '{min(strange)}': expected some of "
                f"{', '.join(target.name for target in config.targets)}"
            )
        self.focal = focal
        self.token_share = token_share

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute the loss of one batch; see `Task`."""
        return self.judge(run_model(model, batch, self.config, self._kept(batch)), batch)

    def evaluate(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute the same on a validation batch, from all tokens.

        Metrics: `loss_<target>` (lower is better) and, where there are classes, `accuracy_<target>` (higher is
        better), over the patients whose label is known.
        """
        outputs = run_model(model, batch, self.config)
        cox = [target.name for target in self.config.targets if target.kind == "cox"]
        found = self.judge(outputs, batch, metrics=True, but=cox)
        if not cox:
            return found
        time, event = tensors(batch, "time", "event")
        return replace(found, rows={"time": time, "event": event} | {name: outputs[name][:, 0] for name in cox})

    def judge_together(self, rows: Mapping[str, Tensor]) -> StepOutput:
        """Return the Cox targets' partial likelihood over the whole validation set; see `JudgesTogether`."""
        total, shown = torch.zeros(()), {}
        for target in self.config.targets:
            if target.kind == "cox":
                loss, deaths = cox_partial_likelihood(rows[target.name], rows["time"], rows["event"] > 0)
                total = total + self.importance.get(target.name, 1.0) * loss
                shown[f"loss_{target.name}"] = (loss, deaths)
        return StepOutput(total, torch.zeros(()), shown)

    def judge(
        self, outputs: Mapping[str, Tensor], batch: Batch, *, metrics: bool = False, but: Collection[str] = ()
    ) -> StepOutput:
        """Compare outputs with a batch's `label`, `time` and `event`, but for some targets; see `evaluate`."""
        total = torch.zeros((), device=next(iter(outputs.values())).device)
        labelled = torch.zeros(len(next(iter(outputs.values()))), dtype=torch.bool, device=total.device)
        shown: dict[str, tuple[Tensor, Tensor]] = {}
        columns = label_columns(self.config.targets)
        for target in self.config.targets:
            logits = outputs[target.name]
            loss, known = self._loss(target, logits, batch, columns)
            labelled = labelled | known
            if target.name in but:
                continue
            total = total + self.importance.get(target.name, 1.0) * loss.sum()
            if metrics:
                count = _counted(target, known, batch)
                shown[f"loss_{target.name}"] = (loss.detach().sum(), count)
                shown |= self._accuracy(target, logits, batch, columns)
        return StepOutput(total, labelled.sum().float(), shown)

    def _loss(
        self, target: Target, logits: Tensor, batch: Batch, columns: Mapping[str, int]
    ) -> tuple[Tensor, Bool[Tensor, " B"]]:
        """The loss, summed or one a patient, and whose label is known."""
        weights = torch.tensor(target.weights, device=logits.device) if target.weights else None
        if target.kind == "multilabel":
            labels = self._labels(target, batch, columns)
            pairs = None if weights is None else weights.view(-1, 2)
            losses = [
                class_loss(_two(logits[:, [i]]), labels[:, i], None if pairs is None else pairs[i], self.focal)
                for i in range(target.outputs)
            ]
            return torch.stack(losses, dim=1), (labels != UNKNOWN).any(1)
        if not target.survival:
            label = self._labels(target, batch, columns)[:, 0]
            scores = _two(logits) if target.kind == "binary" else logits
            return class_loss(scores, label, weights, self.focal), label != UNKNOWN
        return self._survival_loss(target, logits, batch)

    def _survival_loss(self, target: Target, logits: Tensor, batch: Batch) -> tuple[Tensor, Bool[Tensor, " B"]]:
        time, event = tensors(batch, "time", "event")
        if target.kind == "survival_classes":
            label, weight = _class_and_weight(target, time, event)
            return class_loss(logits, label, None, self.focal) * weight, label != UNKNOWN
        known = ~time.isnan()
        if target.kind == "cox":
            loss, _ = cox_partial_likelihood(logits[:, 0], time, event)
            return loss, known
        edges = torch.tensor(target.edges, device=logits.device)
        return logistic_hazard(logits, time, event, edges), known

    def _accuracy(
        self, target: Target, logits: Tensor, batch: Batch, columns: Mapping[str, int]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        if target.kind in ("hazard", "cox"):
            return {}
        if target.kind == "survival_classes":
            label, _ = _class_and_weight(target, *tensors(batch, "time", "event"))
            labels, guess = label[:, None], logits.argmax(1)[:, None]
        else:
            labels = self._labels(target, batch, columns)
            guess = logits.argmax(1)[:, None] if target.kind == "multiclass" else (logits > 0).long()
        known = labels != UNKNOWN
        return {f"accuracy_{target.name}": (((guess == labels) & known).sum().float(), known.sum().float())}

    @staticmethod
    def _labels(target: Target, batch: Batch, columns: Mapping[str, int]) -> Int[Tensor, "B K"]:
        (label,) = tensors(batch, "label")
        return label[:, [columns[f"{target.name}/{column}"] for column in target.columns]]

    def _kept(self, batch: Batch) -> Bool[Tensor, "B M L"] | None:
        """Which patches a training sample keeps, from torch's own state, which the loop seeds in every step."""
        if self.token_share >= 1:
            return None
        images, available = tensors(batch, "images", "available")
        places = 1
        for size, patch in zip(images.shape[-3:], self.config.model.patch, strict=True):
            places *= size // patch
        return torch.rand(*available.shape, places, device=images.device) < self.token_share


def label_columns(targets: tuple[Target, ...]) -> dict[str, int]:
    """Return where each target's columns stand in a batch's `label` Int[B, K], by `target/column`."""
    names = [f"{target.name}/{column}" for target in targets for column in target.columns]
    return {name: index for index, name in enumerate(names)}


def run_model(
    model: nn.Module, batch: Batch, config: PatientModelConfig, kept: Bool[Tensor, "B M L"] | None = None
) -> dict[str, Float[Tensor, "B _"]]:
    """Call a patient model on a batch of `bmmae.data.patients.PatientDataset`."""
    images, available, valid, brain = tensors(batch, "images", "available", "valid", "brain")
    tissue = brain[:, None] if config.model.tissue_only else None
    outputs: dict[str, Tensor] = model(images, available, tissue, valid, beside=beside_of(batch, config), kept=kept)
    return outputs


def beside_of(batch: Batch, config: PatientModelConfig) -> Beside:
    """Return what a batch knows beside the images; measures of modalities that are not shown are not known."""
    names = ("clinical", "clinical_available", "vector", "vector_available", "lesion", "lesion_available")
    found = {name: tensors(batch, name)[0] for name in names if name in batch}
    if "lesion" in found:
        found["lesion"] = found["lesion"].float()
    if "clinical" in found and "available" in batch:
        shown = shown_variables(config.clinical, config.model.modalities, tensors(batch, "available")[0])
        found["clinical"] = torch.where(shown, found["clinical"], unknown_values(config.clinical, shown.device))
        found["clinical_available"] = found["clinical_available"] & shown
    return Beside(**found)


def _two(logit: Float[Tensor, "B 1"]) -> Float[Tensor, "B 2"]:
    """Log-odds of yes, as logits of no and yes."""
    return torch.cat([torch.zeros_like(logit), logit], dim=1)


def _class_and_weight(
    target: Target, time: Float[Tensor, " B"], event: Bool[Tensor, " B"]
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    months, died = time.cpu().double().numpy(), event.cpu().numpy()
    label = torch.from_numpy(survival_classes(months, died, target.edges))
    weight = torch.from_numpy(censoring_weights(target, months, died)).float()
    return label.to(time.device), weight.to(time.device)


def _counted(target: Target, known: Tensor, batch: Batch) -> Tensor:
    """How many a target's loss is a sum over: patients, or deaths for a partial likelihood."""
    if target.kind != "cox":
        return known.sum().float()
    (event,) = tensors(batch, "event")
    return (event & known).sum().float()
