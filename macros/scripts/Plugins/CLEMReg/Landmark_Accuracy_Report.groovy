// Target registration error of any transform, on landmarks that were not used to make it.

#@ File (label="Transform (clemreg, elastix, ITK, BigWarp)") transform
#@ String (label="Landmarks from", choices={"a table (BigWarp, COSEM, clemreg)", "the landmarks in the open BigWarp", "points on two open images"}, value="a table (BigWarp, COSEM, clemreg)") source
#@ File (label="Table", required=false) table
#@ ImagePlus (label="EM image (with its points)", required=false) emImage
#@ ImagePlus (label="Light image (with the same points, in the same order)", required=false) lmImage
#@ String (label="Unit of BigWarp's coordinates", choices={"um", "nm"}, value="um") unit
#@ Boolean (label="BigWarp shows the two images chosen above (adds the origins noted in them)", value=false) shown
#@ String (label="Added to the light coordinates: x, y, z um (empty: nothing)", required=false, value="") offset
#@ String (label="Raters, comma separated (empty: all)", required=false, value="") raters
#@ File (label="Also write the figures to (.json, may be empty)", style="save", required=false) json
#@ Boolean (label="Replace that file", value=false, persist=false) replace
#@ String (label="Python with clemreg (empty: as set up)", visibility="INVISIBLE", required=false, value="") python
#@ StatusService status
#@ LogService log
#@ TaskService tasks
#@ UIService ui
#@output String report

import ij.gui.PointRoi
import java.awt.Container
import java.awt.Window
import javax.swing.JTable

clemreg = new GroovyShell(getClass().classLoader, binding).evaluate(
    new File(new File(binding.getVariable("javax.script.filename").toString()).absoluteFile.parentFile, "launcher.lib"))

NM = [nm: 1, um: 1000, micron: 1000, microns: 1000, mm: 1000000]

/** World position of the first voxel, x, y, z in nm. */
def originOf(image) {
    clemreg.origin(image).collect { it as double }.reverse() ?: [0, 0, 0]
}

/** World positions x, y, z of the points on an image, in nm. */
def pointsOf(image, String name) {
    def roi = image?.roi
    if (!(roi instanceof PointRoi)) clemreg.fail("The " + name + " image has no points: use the multi-point tool.")
    def calibration = image.calibration
    if (!calibration.scaled()) clemreg.fail("The " + name + " image has no voxel size: set it with Image > Properties.")
    def factor = NM[calibration.unit.replace("\u00b5", "u")]
    if (factor == null) clemreg.fail("The " + name + " image has the unit " + calibration.unit + ": give it nm or um with Image > Properties.")
    def size = [calibration.pixelWidth, calibration.pixelHeight, calibration.pixelDepth]
    def origin = originOf(image)
    def polygon = roi.floatPolygon
    (0..<polygon.npoints).collect { i ->
        def slice = roi.getPointPosition(i)
        def z = image.convertIndexToPosition(slice > 0 ? slice : image.currentSlice)[1] - 1
        def index = [polygon.xpoints[i], polygon.ypoints[i], z]
        (0..2).collect { origin[it] + index[it] * size[it] * factor }
    }
}

/** A file with pairs of positions x, y, z in nm, that clemreg reads. */
def tableOf(List names, List em, List lm, String rater) {
    def head = ["Pt-index", "Rater ID", "em-x-nm", "em-y-nm", "em-z-nm", "lm-x-nm", "lm-y-nm", "lm-z-nm"]
    def rows = (0..<names.size()).collect { [names[it], rater] + em[it] + lm[it] }
    def file = File.createTempFile("clemreg-points", ".csv")
    file.setText(([head] + rows).collect { it.join(",") }.join("\n") + "\n", "UTF-8")
    file
}

def tableOfPoints() {
    def em = pointsOf(emImage, "EM")
    def lm = pointsOf(lmImage, "light")
    if (em.size() != lm.size()) clemreg.fail(em.size() + " points on the EM, " + lm.size() + " on the light image: they must be pairs.")
    tableOf((0..<em.size()).collect { "Pt-" + it }, em, lm, "ImageJ")
}

/** The table models of all BigWarp windows: BigWarp keeps its landmarks in a Swing table. */
def bigWarpTables() {
    def open = []
    def search
    search = { component ->
        if (component instanceof JTable && component.model.class.simpleName == "LandmarkTableModel") open << component.model
        if (component instanceof Container) component.components.each { search(it) }
    }
    Window.windows.findAll { it.showing }.each { search(it) }
    open.unique { a, b -> a.is(b) ? 0 : 1 }
}

/** The landmarks that BigWarp uses, as they stand in its window; nothing has to be saved. */
def tableOfBigWarp() {
    def open = bigWarpTables()
    if (open.size() != 1) {
        clemreg.fail(open ? open.size() + " BigWarp windows are open: close all but one." :
            "No landmark window of BigWarp is open: File > Import landmarks there, or choose the table's file here.")
    }
    def model = open[0]
    if (model.numdims != 3) clemreg.fail("BigWarp's landmarks are 2-D: place them in stacks.")
    def used = (0..<model.rowCount).findAll { model.getIsActive(it) }
    if (!used) clemreg.fail("BigWarp has no landmark that is active and set on both images.")
    def origins = [emImage, lmImage].collect { shown && it != null ? originOf(it) : [0, 0, 0] }
    def sides = [true, false].collect { moving -> used.collect { model.getPoints(moving)[it] } }
    def (em, lm) = [sides, origins].transpose().collect { points, origin ->
        points.collect { point -> (0..2).collect { origin[it] + point[it] * NM[unit] } }
    }
    // A name may hold anything; a number is enough to tell the rows apart.
    tableOf(used.collect { "Pt-" + it }, em, lm, "BigWarp")
}

clemreg.attempt {
    def fromFile = source.startsWith("a table")
    if (fromFile && table == null) clemreg.fail("Choose the table of landmarks.")
    if (json != null) clemreg.output(json, replace)
    def landmarks = fromFile ? table : source.startsWith("points") ? tableOfPoints() : tableOfBigWarp()
    try {
        report = clemreg.run("Landmark accuracy", ["evaluate", "landmarks", "--transform", transform, "--landmarks", landmarks] +
            clemreg.option("--fixed-offset", offset) + clemreg.option("--raters", raters) + clemreg.option("--json", json)).join("\n")
    } finally {
        if (!fromFile) landmarks.delete()
    }
    clemreg.tell(report)
}
