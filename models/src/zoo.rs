//! The files of `zoo/` as bytes, so that a program that uses them needs nothing beside it. Where each comes from and
//! under which licence is said in `zoo/`.

macro_rules! file {
    ($path:literal) => {
        include_bytes!(concat!("../zoo/", $path))
    };
}

/// A file and its name.
#[derive(Clone, Copy, Debug)]
pub struct ZooFile {
    /// Name without folder; without extension for a network.
    pub name: &'static str,
    /// Content.
    pub bytes: &'static [u8],
}

/// Trained networks, safetensors with their configuration in the metadata.
pub static NETWORKS: [ZooFile; 6] = [
    ZooFile { name: "mobilenet_v2", bytes: file!("mobilenet_v2/mobilenet_v2.safetensors") },
    ZooFile { name: "cifar_resnet20", bytes: file!("cifar_resnet20/cifar_resnet20.safetensors") },
    ZooFile {
        name: "cifar_resnet56_jpeg",
        bytes: file!("cifar_resnet56_jpeg/cifar_resnet56_jpeg.safetensors"),
    },
    ZooFile {
        name: "cifar_resnet56_jpeg_layer",
        bytes: file!("cifar_resnet56_jpeg/cifar_resnet56_jpeg_layer.safetensors"),
    },
    ZooFile {
        name: "cifar_resnet56_jpeg_layer_24",
        bytes: file!("cifar_resnet56_jpeg/cifar_resnet56_jpeg_layer_24.safetensors"),
    },
    ZooFile {
        name: "cifar_resnet56_jpeg_channel",
        bytes: file!("cifar_resnet56_jpeg/cifar_resnet56_jpeg_channel.safetensors"),
    },
];

/// Photographs of ImageNet classes, JPEG.
pub static PHOTOS: [ZooFile; 6] = [
    ZooFile { name: "flamingo.jpg", bytes: file!("photos/flamingo.jpg") },
    ZooFile { name: "zebra.jpg", bytes: file!("photos/zebra.jpg") },
    ZooFile { name: "balloon.jpg", bytes: file!("photos/balloon.jpg") },
    ZooFile { name: "school_bus.jpg", bytes: file!("photos/school_bus.jpg") },
    ZooFile { name: "steam_locomotive.jpg", bytes: file!("photos/steam_locomotive.jpg") },
    ZooFile { name: "daisy.jpg", bytes: file!("photos/daisy.jpg") },
];

/// 32 test images of CIFAR-10 in its binary format.
pub static CIFAR10_IMAGES: &[u8] = file!("cifar10_images/cifar10_test_32.bin");

/// WordNet id and name of the classes of ImageNet-1k, a tab between them, a line each.
pub static IMAGENET_LABELS: &str = include_str!("../zoo/labels/imagenet.tsv");

/// Names of the classes of CIFAR-10, a line each.
pub static CIFAR10_LABELS: &str = include_str!("../zoo/labels/cifar10.txt");
