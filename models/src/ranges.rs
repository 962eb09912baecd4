//! The tensors that say how large a network's values become: what whole-number activations are scaled by.

use crate::{BlockSpec, ChannelHead, NetSpec, Parameter, ParameterKind};

/// Names of tensors of ranges begin with this.
pub const RANGE_PREFIX: &str = "range.";

impl NetSpec {
    /// The largest magnitude of every channel at every point where activations are stored, a tensor `[c]` each, in the order of
    /// execution:
    ///
    /// | name | of |
    /// |---|---|
    /// | `range.input` | the prepared image |
    /// | `range.stem` | the stem's convolution, behind its activation |
    /// | `range.<block>.gate` | the convolution of a `conv_linear` channel gate |
    /// | `range.<block>.<i>` | convolution `i` of the branch, but for the last, behind its activation |
    /// | `range.<block>` | the stream behind the block, and its projection shortcut, which lies there before |
    /// | `range.head` | the head's convolution |
    ///
    /// They are no [parameters](Self::parameters): only a network of whole numbers needs them.
    pub fn ranges(&self) -> Vec<Parameter> {
        let range = |point: &str, c: usize| Parameter {
            name: format!("{RANGE_PREFIX}{point}"),
            shape: vec![c],
            kind: ParameterKind::Statistic,
        };
        let mut list = vec![range("input", self.input.channels), range("stem", self.stem.conv.c_out)];
        for block in &self.blocks {
            let name = &block.name;
            list.extend(block.gate_hidden().map(|hidden| range(&format!("{name}.gate"), hidden)));
            if let Some((last, inner)) = block.convs.split_last() {
                let inner = inner.iter().enumerate();
                list.extend(inner.map(|(i, conv)| range(&format!("{name}.{i}"), conv.c_out)));
                list.push(range(name, last.c_out));
            }
        }
        list.extend(self.head.conv.as_ref().map(|conv| range("head", conv.c_out)));
        list
    }
}

impl BlockSpec {
    /// Channels that the convolution of a `conv_linear` channel gate has; `None` of a block without one.
    pub fn gate_hidden(&self) -> Option<usize> {
        match self.gate.channel.as_ref()?.head {
            ChannelHead::ConvLinear { hidden } => Some(hidden),
            ChannelHead::Mlp1 | ChannelHead::Mlp2 { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::NetConfig;

    #[test]
    fn every_point_has_a_name_and_its_channels() {
        let config = r#"{"arch": "cifar_resnet", "depths": [1, 1], "widths": [8, 12], "stem_width": 6, "dyn_mode": "channel",
            "channel_granularity": 2, "channel_masker": "conv_linear", "reduction": 2}"#;
        let spec = NetConfig::from_json(config).unwrap().build().unwrap();
        let found: Vec<_> = spec.ranges().into_iter().map(|range| (range.name, range.shape)).collect();
        let wanted = [
            ("range.input", 3),
            ("range.stem", 6),
            ("range.layer1.0.gate", 3),
            ("range.layer1.0.0", 8),
            ("range.layer1.0", 8),
            ("range.layer2.0.gate", 4),
            ("range.layer2.0.0", 12),
            ("range.layer2.0", 12),
        ];
        assert_eq!(found, wanted.map(|(name, c)| (name.to_owned(), vec![c])));
        let mobilenet = NetConfig::from_json(r#"{"arch": "mobilenet_v2"}"#).unwrap().build().unwrap();
        let last = mobilenet.ranges().pop().unwrap();
        assert_eq!((last.name.as_str(), last.shape), ("range.head", vec![1280]));
    }
}
