"""Fine-tune for survival from any subset: logistic hazard, proportional hazards, or classes; labels may join in.

accelerate launch finetune/survival.py --config configs/finetune/survival.yaml \
    --model runs/pretrain --data.cohort cohort.csv
"""

from bmmae.config import parse, script
from bmmae.errors import ConfigError
from bmmae.patient_config import PatientConfig
from bmmae.patient_run import fine_tune
from bmmae.training import look_ahead


def main() -> int:
    """Run; returns the exit code of `bmmae.training.fit`."""
    config = parse(PatientConfig)
    if not config.targets.survival:
        raise ConfigError("targets.survival is empty: expected hazard, cox or survival_classes, or several of them")
    if config.mode != "features":
        look_ahead(config.train, config.optim, config.out)
    return fine_tune(config)


if __name__ == "__main__":
    script(main)
