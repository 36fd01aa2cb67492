//! What each program is run on, and what it should compute, in plain Rust.

use super::harness::{Failure, Random, compare, faulty, int, launch, pointer, sum};
use crate::support::{Arg, Bench};

/// A file of kernels, and how they are run.
pub struct Program {
    /// The file's name.
    pub file: &'static str,
    /// Its CUDA source.
    pub text: &'static str,
    /// Runs its kernels on fresh random data and compares all results.
    pub run: fn(&Bench, &mut Random) -> Result<(), Failure>,
}

macro_rules! programs {
    ($($name:ident)*) => {
        &[$(Program {
            file: concat!(stringify!($name), ".cu"),
            text: include_str!(concat!(stringify!($name), ".cu")),
            run: $name,
        }),*]
    };
}

/// All programs.
pub const PROGRAMS: &[Program] = programs! {
    reduction scan transpose pipeline vector product histogram last_block handoff grid_barrier lock
    named_barrier warp_exchange shuffle uninitialised local_array
};

fn reduction(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    let chunk = 3 * 128;
    for n in [1, 100, 2 * chunk, 2 * chunk + 129] {
        let values = random.floats(n);
        let (from, out) = (bench.upload(&values), bench.room::<f32>(n.div_ceil(chunk)));
        let args = [pointer(from), pointer(out), int(n)];
        launch(bench, "reduce", n.div_ceil(chunk), 128, &args)?;
        let expected: Vec<f32> =
            values.chunks(chunk).map(|chunk| sum(chunk.iter().copied())).collect();
        compare(bench, "out", out, &expected)?;
    }
    Ok(())
}

fn transpose(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    for (rows, cols, grid) in [(32, 64, 2), (45, 70, 2), (33, 5, 1), (70, 97, 12)] {
        let values = random.floats(rows * cols);
        let (from, out) = (bench.upload(&values), bench.room::<f32>(rows * cols));
        launch(
            bench,
            "transpose",
            grid,
            256,
            &[pointer(from), pointer(out), int(rows), int(cols)],
        )?;
        let expected: Vec<f32> =
            (0..rows * cols).map(|at| values[at % rows * cols + at / rows]).collect();
        compare(bench, "out", out, &expected)?;
    }
    Ok(())
}

fn pipeline(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    for (rows, cols) in [(1, 256), (2, 8), (5, 300), (6, 512), (1, 3), (4, 271)] {
        let values = random.floats(rows * cols);
        let (from, out) = (bench.upload(&values), bench.room::<f32>(cols));
        let aligned = cols % 4 == 0;
        let args = [pointer(from), pointer(out), int(rows), int(cols), int(usize::from(aligned))];
        launch(bench, "column_sums", cols.div_ceil(256), 64, &args)?;
        let column = |col: usize| sum((0..rows).map(|row| values[row * cols + col]));
        compare(bench, "out", out, &(0..cols).map(column).collect::<Vec<_>>())?;
    }
    for rows in [1, 4] {
        let values = random.floats(rows * 32);
        let (from, out) = (bench.upload(&values), bench.room::<f32>(32));
        launch(bench, "few_column_sums", 1, 32, &[pointer(from), pointer(out), int(rows)])?;
        let column = |col: usize| sum((0..rows).map(|row| values[row * 32 + 31 - col]));
        compare(bench, "out", out, &(0..32).map(column).collect::<Vec<_>>())?;
    }
    Ok(())
}

fn vector(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    for (n, x_offset, y_offset) in [(512, 0, 0), (333, 0, 0), (333, 1, 0), (130, 0, 3), (3, 0, 0)] {
        let (x, y) = (random.floats(x_offset + n), random.floats(y_offset + n));
        let (on_x, on_y) = (bench.upload(&x), bench.upload(&y));
        let aligned = x_offset == 0 && y_offset == 0;
        let args = [
            pointer(on_x + 4 * x_offset as u64),
            pointer(on_y + 4 * y_offset as u64),
            Arg::F32(3.0),
            int(n),
            int(usize::from(aligned)),
        ];
        launch(bench, "axpy", n.div_ceil(4 * 64), 64, &args)?;
        let mut expected = y.clone();
        for (y, x) in expected[y_offset..].iter_mut().zip(&x[x_offset..]) {
            *y += 3.0 * x;
        }
        compare(bench, "y", on_y, &expected)?;
    }
    for rows in [32, 45] {
        let values = random.floats(rows * 32);
        let (from, out) = (bench.upload(&values), bench.room::<f32>(rows));
        launch(
            bench,
            "row_sums",
            rows.div_ceil(32),
            32,
            &[pointer(from), pointer(out), int(rows)],
        )?;
        let expected: Vec<f32> = values.chunks(32).map(|row| sum(row.iter().copied())).collect();
        compare(bench, "out", out, &expected)?;
    }
    Ok(())
}

fn histogram(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    for n in [128, 500] {
        // The lower bins are fuller; the last one stays empty.
        let values: Vec<u32> = (0..n)
            .map(|_| {
                let limit = 1 + random.below(47);
                random.below(limit) as u32
            })
            .collect();
        let (from, counts) = (bench.upload(&values), bench.room::<u32>(48));
        launch(bench, "clear", 1, 48, &[pointer(counts)])?;
        let args = [pointer(from), pointer(counts), int(n)];
        launch(bench, "histogram", n.div_ceil(128), 128, &args)?;
        let mut expected = [0; 48];
        values.iter().for_each(|&value| expected[value as usize] += 1);
        compare(bench, "counts", counts, &expected)?;
    }
    Ok(())
}

fn last_block(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    let cols = 64;
    for rows in [1_usize, 10, 33] {
        let values = random.floats(rows * cols);
        let blocks = rows.div_ceil(5);
        let (from, counter) = (bench.upload(&values), bench.upload(&[0_u32]));
        let column = |col: usize| sum((0..rows).map(|row| values[row * cols + col]));
        let expected: Vec<f32> = (0..cols).map(column).collect();
        // Twice, as the counter must be zero again.
        for _ in 0..2 {
            let (partial, out) = (bench.room::<f32>(blocks * cols), bench.room::<f32>(cols));
            let args = [pointer(from), pointer(partial), pointer(counter), pointer(out), int(rows)];
            launch(bench, "column_sums", blocks, cols as u32, &args)?;
            compare(bench, "out", out, &expected)?;
        }
        compare(bench, "counter", counter, &[0_u32])?;
    }
    Ok(())
}

fn handoff(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    for kernel in ["acquire_release", "fences"] {
        let (blocks, threads) = (4, 64);
        let values = random.ints(blocks * threads, 1000);
        let (from, out) = (bench.upload(&values), bench.room::<i32>(blocks * threads));
        let flags = bench.upload(&vec![0_i32; blocks]);
        let args = [pointer(from), pointer(out), pointer(flags)];
        faulty(bench.try_cooperative(kernel, blocks as u32, threads as u32, &args))?;
        compare(bench, "out", out, &mirrored_sums(values, threads))?;
    }
    let values = random.ints(4 * 32, 1000);
    let (from, out) = (bench.upload(&values), bench.room::<i32>(values.len()));
    launch(bench, "warps", 1, 4 * 32, &[pointer(from), pointer(out)])?;
    compare(bench, "out", out, &mirrored_sums(values, 32))
}

/// Adds to each row of `width` values the row before it, backwards.
fn mirrored_sums(mut values: Vec<i32>, width: usize) -> Vec<i32> {
    for at in width..values.len() {
        values[at] += values[at / width * width - 1 - at % width];
    }
    values
}

fn grid_barrier(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    let (blocks, threads, rounds) = (4, 64, 3);
    let count = blocks * threads;
    let values = random.ints(count, 1000);
    let (from, scratch) = (bench.upload(&values), bench.room::<i32>(2 * count));
    let (out, arrived) = (bench.room::<i32>(count), bench.upload(&[0_u32]));
    let args = [pointer(from), pointer(scratch), pointer(out), pointer(arrived), int(rounds)];
    faulty(bench.try_cooperative("diffuse", blocks as u32, threads as u32, &args))?;
    let mut expected = values;
    for _ in 0..rounds {
        let next = |at: usize| expected[at] + 2 * expected[(at + threads) % count];
        expected = (0..count).map(next).collect();
    }
    compare(bench, "out", out, &expected)
}

fn scan(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    for n in [1, 64, 200, 256] {
        let values = random.ints(n, 1000);
        let (from, out) = (bench.upload(&values), bench.room::<i32>(n));
        launch(bench, "prefix_sums", 1, 256, &[pointer(from), pointer(out), int(n)])?;
        let mut sum = 0;
        let expected = values.iter().map(|value| {
            sum += value;
            sum
        });
        compare(bench, "out", out, &expected.collect::<Vec<_>>())?;
    }
    Ok(())
}

fn lock(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    let values = random.ints(5, 1000);
    let (from, sums) = (bench.upload(&values), bench.upload(&[0_i32; 2]));
    let lock = bench.upload(&[0_i32]);
    let args = [pointer(from), pointer(sums), pointer(lock)];
    faulty(bench.try_cooperative("locked", values.len() as u32, 32, &args))?;
    let squares = values.iter().map(|value| value * value).sum();
    compare::<i32>(bench, "sums", sums, &[values.iter().sum(), squares])
}

fn warp_exchange(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    for threads in [32, 96] {
        let values = random.ints(threads, 1000);
        let (from, out) = (bench.upload(&values), bench.room::<i32>(threads));
        let rounds = 5;
        launch(bench, "exchange", 1, threads as u32, &[pointer(from), pointer(out), int(rounds)])?;
        let mut expected = values.clone();
        for round in 0..rounds {
            let before = expected.clone();
            for (at, value) in expected.iter_mut().enumerate() {
                *value = value.wrapping_add(before[at / 32 * 32 + (at + round + 1) % 32]);
            }
        }
        compare(bench, "out", out, &expected)?;
        let out = bench.room::<i32>(threads / 32);
        launch(bench, "smallest", 1, threads as u32, &[pointer(from), pointer(out)])?;
        let smallest = values.chunks(32).map(|warp| *warp.iter().min().expect("a warp"));
        compare(bench, "out", out, &smallest.collect::<Vec<_>>())?;
    }
    Ok(())
}

fn shuffle(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    for n in [1, 32, 51, 95] {
        let values = random.ints(n, 1000);
        let (from, out) = (bench.upload(&values), bench.room::<i32>(n.div_ceil(32)));
        let threads = n.next_multiple_of(32) as u32;
        launch(bench, "warp_sums", 1, threads, &[pointer(from), pointer(out), int(n)])?;
        let expected: Vec<i32> = values.chunks(32).map(|warp| warp.iter().sum()).collect();
        compare(bench, "out", out, &expected)?;
    }
    let values = random.ints(64, 1000);
    let (from, out) = (bench.upload(&values), bench.room::<i32>(64));
    launch(bench, "even_and_odd", 1, 64, &[pointer(from), pointer(out)])?;
    let expected = |at: usize| {
        let warp = values[at / 32 * 32..][..32].iter().copied();
        match at % 2 {
            0 => warp.step_by(2).sum(),
            _ => warp.skip(1).step_by(2).max().expect("a warp"),
        }
    };
    compare(bench, "out", out, &(0..64).map(expected).collect::<Vec<_>>())
}

fn uninitialised(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    let threads = 96;
    let values = random.ints(threads, 1000);
    let from = bench.upload(&values);
    let total: i32 = values[..70].iter().sum();
    let out = bench.room::<i32>(1);
    let args = [pointer(from), pointer(out), int(70)];
    launch(bench, "shared_accumulator", 1, threads as u32, &args)?;
    compare(bench, "out", out, &[total])?;

    let out = bench.room::<i32>(threads);
    let args = [pointer(from), pointer(out), int(threads)];
    launch(bench, "register_accumulator", 1, 32, &args)?;
    let positive = |lane: usize| {
        let own = values.iter().skip(lane).step_by(32);
        own.filter(|&&value| value > 0).sum::<i32>()
    };
    compare(bench, "out", out, &(0..32).map(positive).collect::<Vec<_>>())?;
    launch(bench, "register_choice", 1, threads as u32, &args)?;
    let choice = |&value: &i32| if value > 0 { value * threads as i32 / 2 } else { -48 };
    compare(bench, "out", out, &values.iter().map(choice).collect::<Vec<_>>())?;

    let out = bench.room::<i32>(threads);
    launch(bench, "clear", 1, threads as u32, &[pointer(out)])?;
    launch(bench, "global_accumulator", 1, threads as u32, &[pointer(from), pointer(out)])?;
    compare(bench, "out", out, &values)
}

fn product(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    for [m, n, k] in [[16, 16, 16], [21, 35, 40], [5, 3, 7], [40, 9, 33]] {
        let (a, b) = (random.floats(m * k), random.floats(n * k));
        let narrow = |values: &[f32]| -> Vec<u16> {
            // Integers below 128 lose nothing.
            values.iter().map(|value| (value.to_bits() >> 16) as u16).collect()
        };
        let (on_a, on_b) = (bench.upload(&narrow(&a)), bench.upload(&narrow(&b)));
        let c = bench.room::<f32>(m * n);
        let grid = m.div_ceil(16) * n.div_ceil(16);
        let args = [pointer(on_a), pointer(on_b), pointer(c), int(m), int(n), int(k)];
        launch(bench, "product", grid, 64, &args)?;
        let element = |at: usize| sum((0..k).map(|i| a[at / n * k + i] * b[at % n * k + i]));
        compare(bench, "c", c, &(0..m * n).map(element).collect::<Vec<_>>())?;
    }
    Ok(())
}

fn named_barrier(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    for rounds in [1, 2, 5] {
        let values = random.ints(rounds * 64, 1000);
        let (from, out) = (bench.upload(&values), bench.room::<i32>(64));
        let args = [pointer(from), pointer(out), int(rounds)];
        launch(bench, "producer_consumer", 1, 128, &args)?;
        let column = |t: usize| values.iter().skip(63 - t).step_by(64).sum();
        compare(bench, "out", out, &(0..64).map(column).collect::<Vec<i32>>())?;

        let values = random.ints(128, 1000);
        let (from, out) = (bench.upload(&values), bench.room::<i32>(128));
        launch(bench, "halves", 1, 128, &[pointer(from), pointer(out), int(rounds)])?;
        let rotated = |at: usize| {
            let half = at / 64;
            values[half * 64 + (at % 64 + 33 * (rounds + half)) % 64]
        };
        compare(bench, "out", out, &(0..128).map(rotated).collect::<Vec<_>>())?;
    }
    Ok(())
}

fn local_array(bench: &Bench, random: &mut Random) -> Result<(), Failure> {
    let (rows, cols) = (20, 45);
    let values: Vec<i32> = (0..rows * cols).map(|_| 1 + random.below(1000)).collect();
    let lengths: Vec<i32> = (0..cols as i32).map(|col| col % (rows as i32 + 1)).collect();
    let (from, on_lengths) = (bench.upload(&values), bench.upload(&lengths));
    let out = bench.room::<i32>(5 * cols);
    let args = [pointer(from), pointer(on_lengths), pointer(out), int(cols)];
    launch(bench, "largest", cols.div_ceil(32), 32, &args)?;
    let mut expected = vec![0; 5 * cols];
    for (col, &length) in lengths.iter().enumerate() {
        let mut column: Vec<i32> =
            (0..length as usize).map(|row| values[row * cols + col]).collect();
        column.sort_unstable_by(|a, b| b.cmp(a));
        for (k, &value) in column.iter().take(5).enumerate() {
            expected[k * cols + col] = value;
        }
    }
    compare(bench, "out", out, &expected)?;

    let values: Vec<i32> = (0..7 * 32).map(|_| random.below(6)).collect();
    let wanted: Vec<i32> = (0..32).map(|_| random.below(6)).collect();
    let (from, on_wanted) = (bench.upload(&values), bench.upload(&wanted));
    let out = bench.room::<i32>(32);
    let args = [pointer(from), pointer(on_wanted), pointer(out), int(7)];
    launch(bench, "classes", 1, 32, &args)?;
    let count = |lane: usize| {
        let own = values.iter().skip(lane).step_by(32);
        own.filter(|&&value| value == wanted[lane]).count() as i32
    };
    compare(bench, "out", out, &(0..32).map(count).collect::<Vec<_>>())
}
