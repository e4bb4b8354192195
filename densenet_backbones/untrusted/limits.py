"""Bounds of every input: what a small file may cost in memory and time, stated once.

A file is data from anywhere. Each bound lies far above what real data sets and models have (the
largest known one is named beside it) and low enough that whatever is within all of them is read in
seconds, or in time and memory that grow with the file's own size.
"""

# ------------------------------------------------------------------------------ sizes of files

MAX_JSON_FILE = 2**31
"""Bytes of an annotation file: LVIS has 1.1 GB; parsed, JSON takes some ten times its size."""

MAX_RESULTS_FILE = 2**29
"""Bytes of a file of detections, which is parsed at once: COCO's 5,000 evaluated images with masks
take 200 MB."""

MAX_XML_FILE = 2**23
"""Bytes of one image's VOC annotation: 10,000 objects take 4 MB; parsed, a hundred times that."""

MAX_YAML_FILE = 2**18
"""Bytes of a `classes.yaml` or a run's config: the largest shipped one has 2 kB."""

MAX_RUN_FILE = 2**24
"""Bytes of a JSON or YAML file in a run's folder: an evaluation of 30,000 classes has 6 MB."""

MAX_LOG_FILE = 2**26
"""Bytes of a run's `metrics.csv` or `log.txt`: a row of 200 each 50 steps, and a line each."""

MAX_LIST_FILE = 2**26
"""Bytes of a list of image names: ImageNet's 14 million ids would not fit, COCO's take 2 MB."""

MAX_TABLE_FILE = 2**30
"""Bytes of a file with the objects of many images (CSV, CVAT's XML), which is read row by row:
OpenImages' 14 million boxes take 2 GB as text, in parts."""

MAX_CIFAR_FILE = 2**28
"""Bytes of a file of CIFAR; the largest published one, CIFAR-100's training pickle, has 155 MB."""

MAX_CIFAR_BYTES = 2**29
MAX_CIFAR_ENTRIES = 100
"""Bytes that an archive of CIFAR unpacks to, and its entries: published ones have 186 MB, 8 files.
"""

MAX_SHAPES_FILE = 2**26
"""Bytes of one image's labelme file, with a copy of the image in it."""

MAX_PROJECT_FILE = 2**28
"""Bytes of a labelling tool's file of many images, which is parsed at once: VIA takes 100 for a
rectangle and 20 for a point of an outline, so that 10,000 images of 10 outlines have 100 MB."""

MAX_MAT_FILE = 2**20
"""Bytes of a MATLAB file: SBD's masks have some thousands."""

MAX_MAT_CONTENT = 2**24
"""Bytes that an element of a MATLAB file may unpack to: SBD's masks have 250,000 pixels."""

MAX_MAT_CELLS = 1000
"""Structs or cells of an array in a MATLAB file: SBD's have one struct, of lists of 20 cells. SciPy
makes room for as many as are promised."""

MAX_WEIGHTS_HEADER = 2**24
"""Bytes of a safetensors header: 100 a tensor and the model's description; the format allows 1e8,
which take gigabytes when parsed."""

MAX_DOWNLOAD = 2**28
"""Bytes of a file that is fetched from the web: photographs have 10 MB, a minute of video 100."""

MAX_DOWNLOAD_SECONDS = 60
"""Seconds that fetching a file may take."""

# ------------------------------------------------------------------------------ plain values

MAX_DEPTH = 50
"""Levels of lists and mappings inside each other in YAML: configs have 6."""

MAX_VALUES = 100_000
"""Plain values in a YAML file, with what aliases stand for, or in a model's description."""

MAX_SCALAR = 3_000
"""Characters of one YAML value: Python prints no whole number of more than 4,300 digits, and reads
one of many digits in quadratic time."""

MAX_NAME = 1_000
"""Characters of a class's name, which is compared, printed and drawn."""

MAX_PATH = 4_096
"""Characters of a file's name in an annotation: Linux's PATH_MAX."""

# ------------------------------------------------------------------------------ data sets

MAX_CLASSES = 30_000
"""Classes of a detector: ImageNet-21k has 21,841, V3Det 13,204."""

MAX_KEYPOINTS = 1_000
"""Keypoints of an object: COCO-WholeBody has 133, face meshes 478."""

MAX_SIDE = 1_000_000
"""Pixels of an image's side: float32 holds every whole number up to 16 million."""

MAX_PIXELS = 89_478_485
"""Pixels of an image or a mask: Pillow's own first limit, a quarter of a gigabyte at 24 bits."""

MAX_COORDINATE = 1e9
"""Pixels that a coordinate may have: differences and areas stay finite. NaN is larger, too."""

MAX_MASK_PIXELS = 2**31
"""Pixels of one image's masks together, a byte each: LIVECell's 3,200 cells of 704x520 take 1.2e9.
"""

MAX_OUTLINE_LENGTH = 2**20
"""Pixels of an outline's edges: pycocotools walks along every edge and takes 120 bytes a pixel.
The outline of all of a 4000x4000 picture's forest has some 100,000."""

MAX_OUTLINE_WORK = 2**30
"""Number of an outline's polygons times the pixels of their edges: pycocotools joins polygons one
after the other, each time along all that was joined before."""

# ------------------------------------------------------------------------------ folders, archives

MAX_LISTED_FILES = 2_000_000
"""Files below a folder whose layout is looked for: Objects365 has 1.9 million images."""

MAX_FOLDER_DEPTH = 20
"""Folders inside each other that are looked into: real data sets have up to 8."""

MAX_SNIFFED_FILES = 200
SNIFFED_BYTES = 2**16
"""Files of one ending, and bytes at either end of each, that are looked at to tell formats apart.
COCO's and labelme's keys are within the first kilobytes."""

MAX_ARCHIVE_FILES = 1_000_000
"""Files of a zip archive: COCO's train2017.zip has 118,287."""

MAX_ARCHIVE_BYTES = 2**38
"""Bytes that a zip archive may unpack to: COCO's images have 20 GB."""

MAX_ARCHIVE_RATIO = 50
FREE_ARCHIVE_BYTES = 2**30
"""How much larger than itself an archive may become, from a gigabyte on: label files shrink to a
tenth, masks of one class to a fiftieth, and a bomb's zeros to a thousandth."""

# ------------------------------------------------------------------------------ weights

MAX_TENSORS = 20_000
"""Tensors among a file's weights, each of which costs a millisecond: our largest detector has
1,500. A checkpoint with the optimizer's state may have four times as many."""

MAX_HUB_FILE = 2**32
"""Bytes of a model's file on the Hugging Face Hub: the largest detector we build has 0.6 GB."""

MAX_LAYERS = 2_000
"""Dense layers of a network that is rebuilt from the names of its weights: DenseNet-264 has 130."""

BUILDING_BYTES = 2**28
BUILDING_BYTES_PER_WEIGHT_BYTE = 8
"""Bytes of new tensors, together, while a network is built from a file's description: initializing
makes some of the weights' size (a few times that for half precision), priors and grids the rest."""

BUILDING_STEPS = 100_000
BUILDING_STEPS_PER_WEIGHT = 100
"""Operations of torch while a network is built: initializing takes about ten for each tensor."""
