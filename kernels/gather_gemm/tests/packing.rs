//! Panels that are packed for a call: from many panels at once, which the shapes above hardly need.

use super::super::tiles::pack::{Listed, columns};
use super::*;
use crate::Element;
use crate::simd::tiles::{SIDE, column_zero};

/// What instructions pack is what plain loops pack: every `out_step`th column, runs of `run` of every two runs of inputs.
fn packs_as_defined<E: Element>(isa: &str) {
    let Ok(isa) = Isa::named(isa) else { return };
    let mut random = Random(3);
    for geometry in [conv(5, 5, 96, 200, 1, 1, 1), conv(5, 5, 40, 200, 3, 1, 1), conv(5, 5, 36, 24, 3, 1, 2)]
    {
        let weight = random.values(geometry.weights());
        let bias = vec![0.0; geometry.c_out];
        let spec = FilterSpec {
            geometry,
            weight: &weight,
            bias: &bias,
            input_constant: None,
            output_constant: None,
            output_group: None,
        };
        let sets = [isa, Isa(Kind::SoftTiles)];
        let filters = sets.map(|isa| Filter::<E>::pack(isa, &spec).unwrap());
        let filter = &filters[0];
        // The second group's, where there are two.
        let panel = *filter.panels.last().unwrap();
        let window = panel.c_in..panel.c_in + panel.inputs;
        let all =
            if geometry.groups == 1 { 0..geometry.c_out } else { panel.c_out..panel.c_out + panel.columns };
        for (out_step, run) in
            [1, 2, 3, 5, 9, 17].into_iter().flat_map(|step| [1, 2, 3, 4, 8].map(|run| (step, run)))
        {
            let chosen: Vec<usize> = all.clone().step_by(out_step).take(2 * SIDE).collect();
            let inputs: Vec<u32> =
                window.clone().filter(|c| (c / run).is_multiple_of(2)).map(|c| c as u32).collect();
            for inputs in [None, Some(&inputs[..]), Some(&[])] {
                let mut listed = Listed::default();
                listed.list(filter, inputs, &window);
                let [got, want] = [0, 1].map(|set| {
                    let (isa, filter) = (sets[set], &filters[set]);
                    let mut packed =
                        vec![E::from_f32(1.0); chosen.len().div_ceil(SIDE) * SIDE * listed.depth];
                    columns(isa, filter, chosen.iter().copied(), &listed, &mut packed);
                    // Columns behind the last one are nobody's.
                    let tiles = packed.chunks(SIDE * listed.depth.max(1)).zip(chosen.chunks(SIDE));
                    let turn = 4 / size_of::<E>();
                    tiles
                        .flat_map(|(tile, chosen)| {
                            let used = move |&(at, _): &(usize, &E)| at / turn % SIDE < chosen.len();
                            let stored = |value: &E| value.to_f32() - column_zero::<E>(isa).to_f32();
                            // Without a sign they count on from there.
                            let number = move |value| (stored(value) + 128.0).rem_euclid(256.0) - 128.0;
                            let values = tile.iter().enumerate().filter(used);
                            values.map(
                                move |(_, value)| {
                                    if size_of::<E>() == 1 { number(value) } else { stored(value) }
                                },
                            )
                        })
                        .collect::<Vec<f32>>()
                });
                assert_eq!(got, want, "{geometry}, every {out_step} of runs of {run} on {}", isa.name());
                let there = inputs.is_none_or(|inputs| !inputs.is_empty());
                assert_eq!(there, want.iter().any(|&value| value != 0.0));
            }
        }
    }
}

#[test]
fn columns_of_many_panels_are_packed_as_defined() {
    packs_as_defined::<half::bf16>("amx");
    packs_as_defined::<i8>("amx");
    packs_as_defined::<i8>("avx512vnni");
}
