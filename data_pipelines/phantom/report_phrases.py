"""The wording of the phantom's reports: plain tables, no logic.

A phrase has slots in braces, filled by `report.py`:

  {size}  grade of the finding in the words of `GRADES`, may be empty
  {mm}    extent with its unit, "8 mm" or "1.2 cm", may be empty
  {side}  "left", "right", "bilateral", or empty
  {loc}   side and place as an adjective: "left upper lobe", "bilateral lower lobe", "right"
  {at}    side and place as an adverb: "in the left upper lobe", "on the right", "bilaterally"
  {s}     "s" when bilateral

A part in square brackets is dropped when a slot inside it is empty. Every phrase of a finding
that can have a side holds one of {side}, {loc}, {at}, so that no side is lost; the first phrase
of each finding is the terse one.
"""

PHRASES: dict[str, tuple[str, ...]] = {
    "Arterial wall calcification": (
        "{size} aortic wall calcification",
        "{size} atherosclerotic calcification of the aorta",
        "{size} calcified plaque along the aortic wall",
        "{size} calcific atherosclerosis of the thoracic aorta",
        "wall calcification of the aortic arch and descending aorta[, {size}]",
        "the aorta shows {size} mural calcification",
        "{size} arterial wall calcification",
        "{size} vascular calcification of the aorta is noted",
        "atheromatous calcification of the aortic wall[, {size}]",
    ),
    "Cardiomegaly": (
        "{size} cardiomegaly",
        "there is {size} cardiomegaly",
        "{size} enlargement of the heart",
        "the heart is [{size:ly} ]enlarged",
        "{size:ly} enlarged cardiac silhouette",
        "heart size is [{size:ly} ]increased",
        "increased cardiothoracic ratio[ with {size} cardiomegaly]",
        "cardiac chambers are [{size:ly} ]enlarged, cardiomegaly",
        "{size} cardiomegaly is present",
    ),
    "Pericardial effusion": (
        "{size} pericardial effusion",
        "there is a {size} pericardial effusion",
        "{size} fluid in the pericardial sac",
        "{size} effusion around the heart[, up to {mm}]",
        "pericardial effusion[ measuring {mm}][, {size}]",
        "{size} circumferential pericardial fluid",
        "the pericardium contains a {size} effusion",
        "{size} pericardial effusion is present[, {mm} thick]",
    ),
    "Coronary artery wall calcification": (
        "{size} coronary artery calcification",
        "{size} coronary calcification",
        "{size} calcified plaque in the coronary arteries",
        "coronary arteries show {size} calcification",
        "{size} coronary artery wall calcification",
        "{size} calcific coronary atherosclerosis",
        "calcified coronary atheroma[, {size}]",
        "{size} calcification along the main coronary branches",
        "coronary stenosis cannot be excluded because of {size} calcification",
    ),
    "Hiatal hernia": (
        "{size} hiatal hernia",
        "there is a {size} hiatal hernia",
        "{size} sliding hiatal hernia",
        "{size} herniation of the stomach through the oesophageal hiatus",
        "hiatal hernia[ of {mm}][, {size}]",
        "{size} retrocardiac hiatal hernia",
        "part of the stomach lies above the diaphragm, consistent with a {size} hiatal hernia",
        "{size} hiatus hernia containing part of the stomach",
    ),
    "Lymphadenopathy": (
        "{loc} lymphadenopathy[, {mm}]",
        "{size} {loc} lymphadenopathy",
        "enlarged {loc} lymph nodes[ up to {mm}]",
        "there are [{size:ly} ]enlarged lymph nodes {at}[, {mm}]",
        "{size} adenopathy {at}",
        "{loc} lymph nodes are enlarged[, measuring up to {mm}]",
        "pathologically enlarged {loc} nodes[ of {mm}]",
        "{size} nodal enlargement {at}, suspicious for lymphadenopathy",
        "{loc} lymph nodes with a short axis above normal[, {mm}]",
    ),
    "Emphysema": (
        "{size} {loc} emphysema",
        "{size} emphysema {at}",
        "there is {size} emphysema {at}",
        "{size} emphysematous changes {at}",
        "{size} centrilobular emphysema {at}",
        "{size} {loc} emphysematous destruction",
        "areas of low attenuation {at}, in keeping with {size} emphysema",
        "emphysema {at}[, {size}]",
        "{size} {loc} paraseptal emphysema with bullae",
    ),
    "Atelectasis": (
        "{size} {loc} atelectasis",
        "{size} atelectasis {at}",
        "there is {size} atelectasis {at}",
        "{size} {loc} atelectatic change",
        "{size} subsegmental atelectasis {at}",
        "{size} {loc} plate-like atelectasis",
        "{size} volume loss {at} due to atelectasis",
        "{size} dependent atelectasis {at}",
        "linear atelectasis {at}[, {size}]",
    ),
    "Lung nodule": (
        "[{mm} ]{loc} nodule",
        "[{mm} ]nodule {at}",
        "there is a {size} nodule {at}[ measuring {mm}]",
        "{size} pulmonary nodule {at}[, {mm}]",
        "solid nodule {at}[ of {mm}]",
        "{size} {loc} lung nodule[, {mm}]",
        "a [{mm} ]solid pulmonary nodule is seen {at}",
        "{loc} nodule[ measuring {mm}]",
        "well-defined nodule {at}[, diameter {mm}]",
        "{size} round nodule {at}, follow-up recommended",
        "{size} nodular lesion {at}[ of {mm}]",
    ),
    "Lung opacity": (
        "{size} {loc} ground-glass opacity",
        "{size} ground-glass opacity {at}",
        "there is {size} ground-glass opacity {at}",
        "{size} area of ground-glass attenuation {at}",
        "{size} hazy opacity {at}",
        "{loc} ground-glass opacity[, {size}]",
        "{size} {loc} hazy lung opacity",
        "{size} patchy ground-glass opacities {at}",
        "increased lung density {at} of ground-glass type[, {size}]",
    ),
    "Pulmonary fibrotic sequela": (
        "{size} {loc} fibrotic sequelae",
        "{size} fibrotic bands {at}",
        "{size} linear fibrotic scarring {at}",
        "there is {size} pulmonary fibrosis {at}",
        "{size} {loc} sequela fibrotic change",
        "{size} fibrotic streaks {at}",
        "parenchymal scarring {at}[, {size}]",
        "{size} fibrotic sequelae of previous infection {at}",
        "{size} {loc} reticular fibrotic change",
    ),
    "Pleural effusion": (
        "{size} {side} pleural effusion{s}",
        "there is a {size} {side} pleural effusion",
        "{side} pleural effusion{s}[, {size}]",
        "{size} pleural effusion{s} {at}",
        "{size} {side} pleural fluid",
        "{size} {side}-sided pleural effusion",
        "{side} pleural effusion{s}[ up to {mm} in depth]",
        "{size} amount of {side} pleural fluid",
        "{size} free-flowing effusion in the pleural space {at}",
        "{side} pleural effusion{s} layering posteriorly[, {size}]",
        "pleural effusion {at}[ of {size} volume]",
    ),
    "Mosaic attenuation pattern": (
        "{size} mosaic attenuation pattern",
        "{size} mosaic attenuation of the lungs",
        "mosaic attenuation[, {size}]",
        "there is a {size} mosaic attenuation pattern",
        "the lungs show {size} mosaic attenuation",
        "{size} mosaic pattern with patchy air trapping",
        "{size} mosaic perfusion pattern throughout the lungs",
        "heterogeneous lung attenuation in a mosaic pattern[, {size}]",
    ),
    "Peribronchial thickening": (
        "{size} {loc} peribronchial thickening",
        "{size} bronchial wall thickening {at}",
        "{size} peribronchial thickening {at}",
        "there is {size} peribronchial cuffing {at}",
        "{size} {loc} bronchial wall thickening",
        "thickened bronchial walls {at}[, {size}]",
        "{size} {loc} peribronchial cuffing",
        "{size} airway wall thickening {at}, peribronchial",
    ),
    "Consolidation": (
        "{size} {loc} consolidation",
        "{size} consolidation {at}",
        "there is {size} consolidation {at}",
        "{size} area of consolidation {at}",
        "{size} airspace consolidation {at}",
        "{loc} consolidation with air bronchograms[, {size}]",
        "{size} {loc} consolidative change",
        "dense consolidation {at}[, {size}]",
        "{size} {loc} consolidation suggestive of pneumonia",
    ),
    "Bronchiectasis": (
        "{size} {loc} bronchiectasis",
        "{size} bronchiectasis {at}",
        "there is {size} bronchiectasis {at}",
        "{size} bronchiectatic change {at}",
        "[{size:ly} ]dilated bronchi {at}",
        "{size} {loc} cylindrical bronchiectasis",
        "{loc} bronchiectatic airways[, {size}]",
        "{size} tubular bronchiectasis {at} with bronchi wider than the adjacent arteries",
    ),
    "Interlobular septal thickening": (
        "{size} {loc} interlobular septal thickening",
        "{size} interlobular septal thickening {at}",
        "there is {size} septal thickening {at}",
        "{size} thickening of the interlobular septa {at}",
        "thickened interlobular septa {at}[, {size}]",
        "{size} smooth septal lines {at}",
        "{size} {loc} septal thickening",
        "{size} interlobular thickening of the septa {at}, consistent with interstitial oedema",
    ),
}

DEVICE_PHRASES: tuple[str, ...] = (
    "{device}",
    "{device} in place",
    "{device} in situ",
    "{device} noted",
    "there is a {device}",
    "medical material: {device}",
    "patient with a {device}",
)
DEVICES: dict[str, tuple[str, ...]] = {
    "pacemaker": ("pacemaker", "cardiac pacemaker", "pacemaker with its leads"),
    "port catheter": ("port catheter", "implanted port catheter", "chest port catheter"),
    "central venous catheter": ("central venous catheter", "central venous line"),
    "endotracheal tube": ("endotracheal tube", "tracheal tube"),
    "prosthetic valve": ("prosthetic valve", "prosthetic heart valve", "mechanical valve"),
    "set of sternal wires": (
        "set of sternal wires",
        "set of sternotomy wires",
        "median sternotomy with sternal wires",
    ),
}

# Grade words by scale; the key is `Finding.size`.
EXTENT = {
    "small": ("small", "small", "minimal"),
    "moderate": ("moderate", "moderate", "medium-sized"),
    "large": ("large", "large", "massive"),
}
DEGREE = {
    "small": ("mild", "mild", "slight"),
    "moderate": ("moderate",),
    "large": ("severe", "severe", "marked"),
}
GRADES = dict.fromkeys(PHRASES, DEGREE) | dict.fromkeys(
    ("Pericardial effusion", "Hiatal hernia", "Lung nodule", "Pleural effusion"), EXTENT
)

NORMAL = (
    "no acute cardiopulmonary abnormality",
    "normal chest CT",
    "unremarkable CT of the chest",
    "no significant abnormality in the chest",
    "no pathological finding in the thorax",
    "the chest CT is within normal limits",
    "normal study",
    "no abnormality detected",
    "no active disease in the chest",
    "findings within normal limits for age",
    "no evidence of acute disease",
)

# Sentences that deny every finding in the key and say nothing else about the 18 findings.
NEGATIONS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("Pleural effusion",): (
        "no pleural effusion or pneumothorax",
        "no pleural effusion",
        "there is no pleural effusion",
        "no pleural fluid on either side",
        "no evidence of pleural effusion",
        "pleural spaces are free of effusion",
    ),
    ("Pericardial effusion",): (
        "no pericardial effusion",
        "there is no pericardial effusion",
        "no evidence of pericardial effusion",
    ),
    ("Pleural effusion", "Pericardial effusion"): (
        "no pleural or pericardial effusion",
        "pleural and pericardial effusion are absent",
    ),
    ("Cardiomegaly",): (
        "heart size is normal",
        "the heart is not enlarged",
        "no cardiomegaly",
        "normal heart size",
        "cardiac silhouette is normal",
        "no enlargement of the heart",
    ),
    ("Lymphadenopathy",): (
        "no lymphadenopathy",
        "no enlarged lymph nodes",
        "no pathologically enlarged lymph nodes",
        "no mediastinal or hilar lymphadenopathy",
    ),
    ("Lung nodule",): (
        "no lung nodule",
        "no pulmonary nodule",
        "no suspicious nodule in the lungs",
    ),
    ("Consolidation",): (
        "no consolidation",
        "no focal consolidation",
        "no evidence of consolidation",
    ),
    ("Consolidation", "Lung opacity"): (
        "no consolidation or ground-glass opacity",
        "no ground-glass opacity or consolidation",
    ),
    ("Emphysema",): ("no emphysema", "no emphysematous change"),
    ("Bronchiectasis",): ("no bronchiectasis",),
    ("Atelectasis",): ("no atelectasis",),
    ("Hiatal hernia",): ("no hiatal hernia",),
    ("Coronary artery wall calcification",): ("no coronary artery calcification",),
    ("Arterial wall calcification",): ("no aortic wall calcification",),
    ("Medical material",): ("no medical devices",),
    (
        "Emphysema",
        "Atelectasis",
        "Lung nodule",
        "Lung opacity",
        "Pulmonary fibrotic sequela",
        "Mosaic attenuation pattern",
        "Peribronchial thickening",
        "Consolidation",
        "Bronchiectasis",
        "Interlobular septal thickening",
    ): ("the lungs are clear", "both lungs are clear", "lung parenchyma is normal"),
}

# Places that are not lobes: adjective, adverb for one side, adverb for both.
STATIONS = {
    "mediastinal": ("mediastinal", "in the mediastinum", ""),
    "hilar": ("hilar", "in the {} hilum", "in both hila"),
    "axillary": ("axillary", "in the {} axilla", "in both axillae"),
}
