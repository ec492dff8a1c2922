"""Small DICOM series, structure sets and segmentations of a made-up patient, written with pydicom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels.utils import pack_bits
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR = "1.2.840.10008.5.1.4.1.1.4"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (24, 20, 12)


def oblique(spacing: tuple[float, float, float] = (1.5, 2.0, 4.0), degrees: float = 20) -> np.ndarray:
    """An affine (RAS) whose axes are those of no scanner."""
    angle = np.deg2rad(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1.0, -1.0, 1.0]) @ turn @ np.diag(spacing)
    affine[:3, 3] = (30, -12, 7)
    return affine


def phantom(seed: int = 0) -> np.ndarray:
    """Random background with a bright block, of which each voxel can be told."""
    array = np.random.default_rng(seed).integers(1, 400, SHAPE).astype(np.uint16)
    array[block()] = 1000
    return array


def block() -> tuple[slice, slice, slice]:
    return slice(6, 15), slice(5, 13), slice(3, 8)


@dataclass
class Patient:
    """Whose identity must not get out."""

    folder: Path
    name: str = "Quimby^Wilhelmina"
    patient_id: str = "MRN4711A"
    date: str = "20190314"
    study_uid: str = field(default_factory=generate_uid)
    frame_uid: str = field(default_factory=generate_uid)

    def secrets(self) -> tuple[str, ...]:
        return (*self.name.split("^"), self.patient_id, self.date, "2019-03-14", self.study_uid, "19480229", "A998877")

    def _file(self, kind: str, sop: str, number: int, description: str) -> Any:
        uid = generate_uid()
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop, uid
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        file.SOPClassUID, file.SOPInstanceUID, file.Modality = sop, uid, kind
        file.PatientName, file.PatientID, file.PatientBirthDate = self.name, self.patient_id, "19480229"
        file.StudyDate = file.SeriesDate = file.AcquisitionDate = file.ContentDate = self.date
        file.StudyTime = file.AcquisitionTime = file.ContentTime = "112233"
        file.AccessionNumber, file.StudyID, file.InstitutionName = "A998877", "S1", "General"
        file.StudyInstanceUID, file.FrameOfReferenceUID = self.study_uid, self.frame_uid
        file.SeriesNumber, file.SeriesDescription, file.Manufacturer = number, description, "SIEMENS"
        return file

    def series(
        self,
        description: str,
        array: np.ndarray | None = None,
        affine: np.ndarray | None = None,
        skip: tuple[int, ...] = (),
        number: int = 1,
        **header: Any,
    ) -> str:
        """Write one file a slice (third axis) and return the SeriesInstanceUID; `skip` leaves slices out."""
        array = phantom() if array is None else array
        affine = oblique() if affine is None else affine
        lps, uid = LPS @ affine, generate_uid()
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        values = {"RepetitionTime": 500, "EchoTime": 10, "ScanningSequence": "SE", **header}
        values.setdefault("ImageType", ["ORIGINAL", "PRIMARY", "M"])
        for k in set(range(array.shape[2])) - set(skip):
            file = self._file("MR", MR, number, description)
            file.SeriesInstanceUID, file.InstanceNumber, file.AcquisitionNumber = uid, k + 1, 1
            file.ImagePositionPatient = [f"{v:.6f}" for v in lps[:3, 3] + k * lps[:3, 2]]
            axes = (*(lps[:3, 0] / spacing[0]), *(lps[:3, 1] / spacing[1]))
            file.ImageOrientationPatient = [f"{v:.8f}" for v in axes]
            file.PixelSpacing, file.SliceThickness = [spacing[1], spacing[0]], spacing[2]
            file.SpacingBetweenSlices, file.MRAcquisitionType, file.SequenceVariant = spacing[2], "2D", "SK"
            file.Rows, file.Columns = array.shape[1], array.shape[0]
            file.BitsAllocated = file.BitsStored = 16
            file.HighBit, file.PixelRepresentation, file.SamplesPerPixel = 15, 0, 1
            file.PhotometricInterpretation = "MONOCHROME2"
            for key, value in values.items():
                setattr(file, key, value)
            file.PixelData = np.ascontiguousarray(array[:, :, k].T).astype("<u2").tobytes()
            self._save(file, f"s{number}_{k:03d}")
        return uid

    def contours(self, referenced: str, structures: dict[str, list[np.ndarray]], number: int = 90) -> str:
        """Write an RTSTRUCT; contours are corners [P, 3] in millimetres (RAS)."""
        file = self._file("RTSTRUCT", RTSTRUCT, number, "contours")
        file.SeriesInstanceUID = generate_uid()
        file.ReferencedFrameOfReferenceSequence = [
            _item(RTReferencedStudySequence=[_item(RTReferencedSeriesSequence=[_item(SeriesInstanceUID=referenced)])])
        ]
        file.StructureSetROISequence = [_item(ROINumber=i, ROIName=name) for i, name in enumerate(structures, 1)]
        file.ROIContourSequence = [
            _item(ReferencedROINumber=i, ContourSequence=[_contour(points) for points in contours])
            for i, contours in enumerate(structures.values(), 1)
        ]
        self._save(file, f"rt{number}")
        return str(file.SeriesInstanceUID)

    def segmentation(
        self, referenced: str, masks: dict[str, np.ndarray], affine: np.ndarray | None = None, number: int = 91
    ) -> None:
        """Write a binary SEG; masks [H, W, D] on the grid of `affine`, only slices that are not empty, last first."""
        affine = oblique() if affine is None else affine
        lps, spacing = LPS @ affine, np.linalg.norm(affine[:3, :3], axis=0)
        file = self._file("SEG", SEG, number, "segmentation")
        file.SeriesInstanceUID, file.SegmentationType = generate_uid(), "BINARY"
        file.ReferencedSeriesSequence = [_item(SeriesInstanceUID=referenced)]
        file.SegmentSequence = [_item(SegmentNumber=i, SegmentLabel=name) for i, name in enumerate(masks, 1)]
        axes = (*(lps[:3, 0] / spacing[0]), *(lps[:3, 1] / spacing[1]))
        file.SharedFunctionalGroupsSequence = [
            _item(
                PlaneOrientationSequence=[_item(ImageOrientationPatient=[f"{v:.8f}" for v in axes])],
                PixelMeasuresSequence=[_item(PixelSpacing=[spacing[1], spacing[0]])],
            )
        ]
        groups, frames = [], []
        for i, mask in enumerate(masks.values(), 1):
            for k in np.flatnonzero(mask.any(axis=(0, 1)))[::-1]:
                place = [f"{v:.6f}" for v in lps[:3, 3] + k * lps[:3, 2]]
                groups.append(
                    _item(
                        PlanePositionSequence=[_item(ImagePositionPatient=place)],
                        SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=i)],
                    )
                )
                frames.append(mask[:, :, k].T.astype(np.uint8))
        file.PerFrameFunctionalGroupsSequence = groups
        file.NumberOfFrames, file.Rows, file.Columns = len(frames), *frames[0].shape
        file.BitsAllocated = file.BitsStored = file.SamplesPerPixel = 1
        file.HighBit = file.PixelRepresentation = 0
        file.PhotometricInterpretation = "MONOCHROME2"
        file.PixelData = pack_bits(np.array(frames))
        self._save(file, f"seg{number}")

    def _save(self, file: Any, name: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file.save_as(self.folder / f"{name}.dcm", enforce_file_format=True)


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for key, value in values.items():
        setattr(item, key, value)
    return item


def _contour(points: np.ndarray) -> Dataset:
    lps = points * (-1, -1, 1)
    return _item(
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(points),
        ContourData=[f"{v:.4f}" for v in lps.ravel()],
    )


def rectangle(low: tuple[float, float], high: tuple[float, float], k: int, affine: np.ndarray) -> np.ndarray:
    """Corners in millimetres (RAS) of a rectangle in slice k, given in voxel indices."""
    (a, b), (c, d) = low, high
    corners = np.array([(a, b, k), (c, b, k), (c, d, k), (a, d, k)], dtype=float)
    return corners @ affine[:3, :3].T + affine[:3, 3]
