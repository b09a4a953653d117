"""Package metadata; each range was tried, as said beside it."""

from pathlib import Path

from setuptools import find_packages, setup

# The tests passed at the lower ends on Python 3.11 (jax 0.8.0, flax 0.12.0, numpy 2.0.2, ...), with
# jax 0.10.2 on Python 3.11, and with jax 0.12.0 and flax 0.12.12 on 3.12 and 3.13. With Pillow 11.3
# and matplotlib 3.10.0, which a notebook's kernel may have loaded, those of data and of pictures;
# with absl-py 2.3.1, etils 1.12.0 and protobuf 6.31.1 those of checkpoints and of refused data.
RUNTIME = [
    "jax>=0.8,<0.13",  # arrays, compilation, sharding
    "flax>=0.12,<0.13",  # linen modules
    "numpy>=2.0,<3",  # images, tables and conversions on the host
    "optax>=0.2.6,<0.3",  # optimizers, schedules
    "orbax-checkpoint>=0.12.8,<0.13",  # training checkpoints
    "etils>=1.12",  # paths as Orbax takes them
    "grain>=0.2.13,<0.3",  # input pipelines
    "absl-py>=2.3.1",  # main.py's command line, Grain's flags, levels of logging
    "ml_collections>=1.1,<2",  # configs of main.py
    "chex>=0.1.91,<0.2",  # checks of arguments' shapes, made while tracing
    "clu>=0.0.12,<0.1",  # the table of all arrays and their shardings, shardings.txt
    "tensorflow-datasets>=4.9.9,<5",  # data sets prepared as ArrayRecord; needs no TensorFlow
    "safetensors>=0.6.2,<0.9",  # the hub's weight files
    "flatbuffers>=25.12,<26",  # jax.export's files: JAX needs it and does not bring it
    "huggingface_hub>=0.34,<3",  # fetching weights by their hub id
    "ml_dtypes>=0.5,<1",  # bfloat16 in NumPy
    "pillow>=11.3,<14",  # images, decoded and augmented
    # Resizing, three times as fast as Pillow's; without it Pillow's is used.
    "cykooz-resizer>=4,<5; platform_machine == 'x86_64' and sys_platform == 'linux'",
    "array_record>=0.8,<0.9",  # data sets as TFDS and tools/prepare_data.py write them
    "protobuf>=6.31.1",  # errors of damaged records; TFDS does not run with an older one
    "fsspec>=2025.3,<2027",  # tar shards and folders in buckets
    "tensorboardX>=2.6.5,<2.7",  # TensorBoard events without TensorFlow
    "tqdm>=4.67,<5",  # progress bars
    "threadpoolctl>=3.6,<4",  # SOAP: one LAPACK thread per matrix
    "matplotlib>=3.10,<4",  # figures
]

README = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")

setup(
    name="adaperceiver_jax",
    version="0.1.0",
    description="AdaPerceiver (arXiv 2511.18105) in JAX and Flax: a vision transformer whose "
    "tokens, depth and width are chosen at run time",
    long_description=README.partition("![")[0],  # then it links to files that are not in the wheel
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["adaperceiver_jax", "adaperceiver_jax.*"]),
    package_data={"adaperceiver_jax": ["py.typed"]},
    install_requires=RUNTIME,
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "cuda12": ["jax[cuda12]"],  # drivers before 580
        "torch": ["torch>=2.13,<3"],  # .pth files; conversions are checked against it
        "dev": [
            "build>=1.3,<2",  # the wheel and the sdist that are tried
            "importlib_resources>=6,<8",  # TFDS misses it where it writes without TensorFlow
            "ipykernel>=7.4,<8",  # notebooks, run headless
            "mypy>=2.4,<3",
            "nbclient>=0.11,<0.12",
            "nbformat>=5.11,<6",
            "packaging>=24",  # reads requirements
            "pytest>=9,<10",
            "pytest-xdist>=3.8,<4",  # tests on all cores
            "setuptools>=77",  # builds them
            "scikit-learn>=1.8,<2",  # its confusion matrix, to compare with
            "ruff>=0.17.5,<0.18",  # one minor version: formats differ between them
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
