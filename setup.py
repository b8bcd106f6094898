from setuptools import find_packages, setup

setup(
    name="mlsh",
    version="0.3.0",
    description="Meta Learning Shared Hierarchies in PyTorch",
    license="MIT",
    python_requires=">=3.11",
    package_dir={"": "code"},
    packages=find_packages("code"),
    package_data={"mlsh.harness": ["page.html"]},
    install_requires=[
        "torch>=2.6",
        "numpy>=2.0",
        "gymnasium>=1.1",
        "mujoco>=3.3",
        "packaging",  # imported by Gymnasium's MuJoCo renderer
        "pygame-ce>=2.5",
        "imageio[ffmpeg]>=2.34",
        "wandb>=0.19",
        "tensorboard>=2.14",
        "tyro>=0.9",
        "filelock>=3.12",
        "tqdm>=4.66",
        "matplotlib>=3.9",
        "scipy>=1.15",
        "tabulate>=0.9",
        "jinja2>=3.1",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "pyright[nodejs]>=1.1",
            "nbclient>=0.10",
            "ipykernel>=6.29",
        ],
        "gym": ["shimmy>=2.0", "gym==0.26.2"],  # for environments of the old Gym; Shimmy's own extra needs NumPy 1
        "metaworld": ["metaworld==3.1.1"],  # needs MuJoCo 3.3.0, see docs/guide/your-own-environment.md
    },
)
