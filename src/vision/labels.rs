//! Names of the classes that the shipped networks tell apart.

use std::sync::LazyLock;

use laud_models::zoo::{CIFAR10_LABELS, IMAGENET_LABELS};

static IMAGENET: LazyLock<(Vec<&str>, Vec<&str>)> =
    LazyLock::new(|| IMAGENET_LABELS.lines().filter_map(|line| line.split_once('\t')).unzip());
static CIFAR10: LazyLock<Vec<&str>> = LazyLock::new(|| CIFAR10_LABELS.lines().collect());

/// A set of class names; a class is its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Labels {
    /// The 1,000 classes of ImageNet-1k in the order of torchvision's checkpoints, which is that of their WordNet ids.
    ImageNet,
    /// The 10 classes of CIFAR-10.
    Cifar10,
}

impl Labels {
    /// The set that a classifier with `classes` outputs most likely means: ImageNet for 1,000, CIFAR-10 for 10.
    pub fn for_classes(classes: usize) -> Option<Self> {
        [Self::ImageNet, Self::Cifar10].into_iter().find(|set| set.names().len() == classes)
    }

    /// All names, in the order of the classes.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::ImageNet => &IMAGENET.1,
            Self::Cifar10 => &CIFAR10,
        }
    }

    /// Name of class `label`; `None` outside the set.
    pub fn name(self, label: usize) -> Option<&'static str> {
        self.names().get(label).copied()
    }

    /// Class of this exact name.
    pub fn index_of(self, name: &str) -> Option<usize> {
        self.names().iter().position(|&n| n == name)
    }
}

/// ImageNet class of a WordNet id such as `n01440764`.
pub fn imagenet_class_of_wnid(wnid: &str) -> Option<usize> {
    IMAGENET.0.binary_search(&wnid).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_whole_and_in_torchvision_order() {
        let known = [
            (0, "tench"),
            (207, "golden retriever"),
            (340, "zebra"),
            (779, "school bus"),
            (999, "toilet tissue"),
        ];
        for (label, name) in known {
            assert_eq!(Labels::ImageNet.name(label), Some(name));
            assert_eq!(Labels::ImageNet.index_of(name), Some(label));
        }
        assert_eq!(Labels::ImageNet.names().len(), 1000);
        assert_eq!(Labels::ImageNet.name(1000), None);
        assert_eq!(Labels::Cifar10.names().len(), 10);
        assert_eq!(Labels::Cifar10.name(9), Some("truck"));
        assert!(IMAGENET.0.is_sorted());
        assert_eq!(imagenet_class_of_wnid("n01440764"), Some(0));
        assert_eq!(imagenet_class_of_wnid("n15075141"), Some(999));
        assert_eq!(imagenet_class_of_wnid("n00000000"), None);
    }

    #[test]
    fn classifier_width_names_the_set() {
        assert_eq!(Labels::for_classes(1000), Some(Labels::ImageNet));
        assert_eq!(Labels::for_classes(10), Some(Labels::Cifar10));
        assert_eq!(Labels::for_classes(100), None);
    }
}
