"""Raw scans: DICOM to NIfTI without identities, and NIfTI to co-registered, skull-stripped studies on one grid."""
