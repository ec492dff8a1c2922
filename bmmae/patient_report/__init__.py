"""How good a model of patients is, as one HTML page that needs nothing else."""

from bmmae.patient_report.page import patient_page, score_all, write_patient_report

__all__ = ["patient_page", "score_all", "write_patient_report"]
