//! Loads and stores of 8x8 matrices of 16-bit elements.

use super::access::Intent;
use crate::exec::alu::lanes::LANES;
use crate::exec::alu::mma::transpose;
use crate::exec::context::{Machine, Stop};
use crate::exec::sanitize::{Deed, Deeds};
use crate::exec::warp::Warp;
use crate::fault::FaultKind;
use crate::program::{MatricesOp, Order, SHARED_WINDOW, Space, WINDOW_BYTES};

impl Warp {
    /// Finds the rows of matrices in shared memory; lane l gives row l % 8 of matrix l / 8.
    fn rows(
        &mut self,
        machine: &mut Machine,
        op: &MatricesOp,
        deed: Deed,
    ) -> Result<(), Box<Stop>> {
        const ROW_BYTES: u32 = 16;
        let matrices = op.registers.len();
        let mask = u32::MAX >> (LANES - 8 * matrices);
        let space = op.address.space;
        let intent = if deed == Deed::Read { Intent::Read } else { Intent::Write };
        self.translate(machine, &op.address, ROW_BYTES, intent, mask)?;
        machine.counters.shared_requests += 1;
        if space == Space::Generic {
            let address = |lane| self.address(&op.address, lane);
            let outside = |&lane: &usize| {
                address(lane).checked_sub(SHARED_WINDOW).is_none_or(|at| at >= WINDOW_BYTES)
            };
            if let Some(lane) = (0..8 * matrices).find(outside) {
                let detail = "matrices are loaded from and stored to shared memory only";
                return Err(Stop::at(FaultKind::IllegalAccess, lane, address(lane), detail));
            }
        }
        if machine.context.config.sanitizer {
            let (address, bytes, order) = (&op.address, ROW_BYTES as usize, Order::Weak);
            self.look(machine, Deeds { deed, address, bytes, mask, order, store: None })?;
        }
        self.measure_matrices(machine, mask);
        Ok(())
    }

    /// Executes a load of 8x8 matrices; all lanes are here.
    pub(crate) fn load_matrix(
        &mut self,
        machine: &mut Machine,
        op: &MatricesOp,
    ) -> Result<(), Box<Stop>> {
        self.rows(machine, op, Deed::Read)?;
        for (matrix, &target) in op.registers.iter().enumerate() {
            let mut words = [0; LANES];
            for (row, words) in words.chunks_exact_mut(4).enumerate() {
                // SAFETY: `rows` found 16 aligned bytes of the block's shared memory here.
                let found = unsafe { self.pointers[8 * matrix + row].cast::<[u32; 4]>().read() };
                words.copy_from_slice(&found);
            }
            self.r[target as usize].0 = if op.transposed { transpose(&words) } else { words };
        }
        Ok(())
    }

    /// Executes a store of 8x8 matrices; all lanes are here.
    pub(crate) fn store_matrix(
        &mut self,
        machine: &mut Machine,
        op: &MatricesOp,
    ) -> Result<(), Box<Stop>> {
        self.spin.has_effect();
        self.rows(machine, op, Deed::Write)?;
        for (matrix, &source) in op.registers.iter().enumerate() {
            let words = self.r[source as usize].0;
            let words = if op.transposed { transpose(&words) } else { words };
            for row in 0..8 {
                let row_words: [u32; 4] = std::array::from_fn(|at| words[4 * row + at]);
                // SAFETY: `rows` found 16 aligned bytes of the block's shared memory here.
                unsafe { self.pointers[8 * matrix + row].cast::<[u32; 4]>().write(row_words) };
            }
        }
        Ok(())
    }
}
