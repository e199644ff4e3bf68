"""The attributes of the Query/Retrieve Information Models (PS3.4 C.6), and where the tables have them."""

from dataclasses import dataclass
from typing import Any, Final

from radmesh.database_server.schema import instances, patients, series, studies

PATIENT, STUDY, SERIES, IMAGE = "PATIENT", "STUDY", "SERIES", "IMAGE"
LEVELS: Final = (PATIENT, STUDY, SERIES, IMAGE)
# QueryModel of database.v1 -> its levels.
MODELS: Final = {1: LEVELS, 2: LEVELS[1:], 3: LEVELS[:2]}


@dataclass(frozen=True, slots=True, eq=False)
class Attribute:
    """An attribute of the model: its level, and where it is: a column, a field that is made, or the header."""

    tag: int
    vr: str
    keyword: str
    level: str
    column: Any = None
    made: str = ""
    header: bool = False


def _a(tag: int, vr: str, keyword: str, level: str, column: Any = None, made: str = "") -> Attribute:
    return Attribute(tag, vr, keyword, level, column, made, column is None and not made)


ATTRIBUTES: Final = (
    _a(0x00100010, "PN", "PatientName", PATIENT, patients.c.patient_name),
    _a(0x00100020, "LO", "PatientID", PATIENT, patients.c.patient_id),
    _a(0x00100021, "LO", "IssuerOfPatientID", PATIENT, patients.c.issuer_of_patient_id),
    _a(0x00100030, "DA", "PatientBirthDate", PATIENT, patients.c.patient_birth_date),
    _a(0x00100040, "CS", "PatientSex", PATIENT, patients.c.patient_sex),
    _a(0x00201200, "IS", "NumberOfPatientRelatedStudies", PATIENT, made="patient_studies"),
    _a(0x00201202, "IS", "NumberOfPatientRelatedSeries", PATIENT, made="patient_series"),
    _a(0x00201204, "IS", "NumberOfPatientRelatedInstances", PATIENT, made="patient_instances"),
    _a(0x00080020, "DA", "StudyDate", STUDY, studies.c.study_date),
    _a(0x00080030, "TM", "StudyTime", STUDY, studies.c.study_time),
    _a(0x00080050, "SH", "AccessionNumber", STUDY, studies.c.accession_number),
    _a(0x00080061, "CS", "ModalitiesInStudy", STUDY, made="modalities"),
    _a(0x00080062, "UI", "SOPClassesInStudy", STUDY, made="sop_classes"),
    _a(0x00080090, "PN", "ReferringPhysicianName", STUDY, studies.c.referring_physician_name),
    _a(0x00081030, "LO", "StudyDescription", STUDY, studies.c.study_description),
    _a(0x00081048, "PN", "PhysiciansOfRecord", STUDY),
    _a(0x00081060, "PN", "NameOfPhysiciansReadingStudy", STUDY),
    _a(0x00081080, "LO", "AdmittingDiagnosesDescription", STUDY),
    _a(0x00100032, "TM", "PatientBirthTime", STUDY),
    _a(0x00101010, "AS", "PatientAge", STUDY),
    _a(0x00101020, "DS", "PatientSize", STUDY),
    _a(0x00101030, "DS", "PatientWeight", STUDY),
    _a(0x00102160, "SH", "EthnicGroup", STUDY),
    _a(0x00104000, "LT", "PatientComments", STUDY),
    _a(0x0020000D, "UI", "StudyInstanceUID", STUDY, studies.c.study_instance_uid),
    _a(0x00200010, "SH", "StudyID", STUDY, studies.c.study_id),
    _a(0x00201206, "IS", "NumberOfStudyRelatedSeries", STUDY, made="study_series"),
    _a(0x00201208, "IS", "NumberOfStudyRelatedInstances", STUDY, made="study_instances"),
    _a(0x00080021, "DA", "SeriesDate", SERIES, series.c.series_date),
    _a(0x00080031, "TM", "SeriesTime", SERIES, series.c.series_time),
    _a(0x00080060, "CS", "Modality", SERIES, series.c.modality),
    _a(0x00080070, "LO", "Manufacturer", SERIES, series.c.manufacturer),
    _a(0x00080080, "LO", "InstitutionName", SERIES),
    _a(0x00081010, "SH", "StationName", SERIES, series.c.station_name),
    _a(0x0008103E, "LO", "SeriesDescription", SERIES, series.c.series_description),
    _a(0x00081040, "LO", "InstitutionalDepartmentName", SERIES),
    _a(0x00081050, "PN", "PerformingPhysicianName", SERIES),
    _a(0x00081070, "PN", "OperatorsName", SERIES),
    _a(0x00081090, "LO", "ManufacturerModelName", SERIES),
    _a(0x00180015, "CS", "BodyPartExamined", SERIES, series.c.body_part_examined),
    _a(0x00181000, "LO", "DeviceSerialNumber", SERIES),
    _a(0x00181020, "LO", "SoftwareVersions", SERIES),
    _a(0x00181030, "LO", "ProtocolName", SERIES),
    _a(0x00185100, "CS", "PatientPosition", SERIES),
    _a(0x0020000E, "UI", "SeriesInstanceUID", SERIES, series.c.series_instance_uid),
    _a(0x00200011, "IS", "SeriesNumber", SERIES, series.c.series_number),
    _a(0x00200052, "UI", "FrameOfReferenceUID", SERIES),
    _a(0x00200060, "CS", "Laterality", SERIES),
    _a(0x00201209, "IS", "NumberOfSeriesRelatedInstances", SERIES, made="series_instances"),
    _a(0x00080016, "UI", "SOPClassUID", IMAGE, instances.c.sop_class_uid),
    _a(0x00080018, "UI", "SOPInstanceUID", IMAGE, instances.c.sop_instance_uid),
    _a(0x00080023, "DA", "ContentDate", IMAGE, instances.c.content_date),
    _a(0x00080033, "TM", "ContentTime", IMAGE, instances.c.content_time),
    _a(0x00083002, "UI", "AvailableTransferSyntaxUID", IMAGE, instances.c.transfer_syntax_uid),
    _a(0x00200012, "IS", "AcquisitionNumber", IMAGE, instances.c.acquisition_number),
    _a(0x00200013, "IS", "InstanceNumber", IMAGE, instances.c.instance_number),
    _a(0x00280008, "IS", "NumberOfFrames", IMAGE, instances.c.number_of_frames),
    _a(0x00280010, "US", "Rows", IMAGE, instances.c.rows),
    _a(0x00280011, "US", "Columns", IMAGE, instances.c.columns),
    _a(0x00280100, "US", "BitsAllocated", IMAGE, instances.c.bits_allocated),
)
"""What can be searched for and is told, level by level (docs/reference/query.md)."""
BY_TAG: Final = {attribute.tag: attribute for attribute in ATTRIBUTES}
UNIQUE: Final = {PATIENT: 0x00100020, STUDY: 0x0020000D, SERIES: 0x0020000E, IMAGE: 0x00080018}
