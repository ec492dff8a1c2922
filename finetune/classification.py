"""Fine-tune for labels of patients (subtype, primary site, markers), any number of them at once, from any subset.

accelerate launch finetune/classification.py --config configs/finetune/classification.yaml \
    --model runs/pretrain --data.cohort cohort.csv --targets.labels '[subtype]'
"""

from bmmae.config import parse, script
from bmmae.errors import ConfigError
from bmmae.patient_config import PatientConfig
from bmmae.patient_run import fine_tune
from bmmae.training import look_ahead


def main() -> int:
    """Run; returns the exit code of `bmmae.training.fit`."""
    config = parse(PatientConfig)
    if not (config.targets.labels or config.targets.multilabel):
        raise ConfigError("no label is to be predicted: name columns of the cohort in targets.labels")
    if config.mode != "features":
        look_ahead(config.train, config.optim, config.out)
    return fine_tune(config)


if __name__ == "__main__":
    script(main)
